"""What a year of a project's life is made of: its drops, its services, and what must have come of them."""
