# Debian's PostgreSQL, with the settings that docker/compose.yaml gives to the official image.
FROM diptych-testing/debian:12
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
COPY docker/testing/postgres.sh /usr/local/bin/
STOPSIGNAL SIGINT
CMD ["postgres.sh"]
