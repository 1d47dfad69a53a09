# The image with an earlier MLflow, whose tables the tests upgrade.
FROM diptych-testing/diptych:latest
USER root
RUN /usr/bin/python3 -m pip install --no-cache-dir --target /opt/uv 'uv>=0.13,<1' \
    && /opt/uv/bin/uv pip install --no-cache --python /opt/venv --no-deps \
        mlflow==3.15.2 mlflow-skinny==3.15.2 mlflow-tracing==3.15.2
USER 1000:1000
