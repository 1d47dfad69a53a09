# The image of diptych with the newest MLflow that pyproject.toml allows, which an upgrade leads to.
FROM diptych-testing/debian:12 AS packages
RUN python -m pip install --no-cache-dir --no-deps --target /opt/later 'mlflow<4' 'mlflow-skinny<4' 'mlflow-tracing<4'

# hadolint ignore=DL3007
FROM diptych-testing/diptych:latest
COPY --from=packages /opt/later /opt/later
ENV PYTHONPATH=/opt/later
