# moto's server in the version of requirements.lock, with its data in /data.
FROM diptych-testing/debian:12
WORKDIR /opt/s3
COPY requirements.lock docker/testing/s3.py ./
RUN python -m pip install --no-cache-dir --target uv 'uv>=0.13,<1' \
    && uv/bin/uv venv venv \
    && uv/bin/uv pip install --no-cache --python venv/bin/python --constraint requirements.lock 'moto[server]' \
    && rm -r uv
CMD ["venv/bin/python", "s3.py"]
