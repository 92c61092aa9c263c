# The server and its command line in a container: `docker build -t lightning-store-grpc:0.1.0 .`
# docs/deployment.md tells how to run it. podman and buildah need `--format docker`, or they leave the health check out.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /source
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install build
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY server server
COPY clients/python clients/python
COPY integrations integrations
RUN python -m build --wheel
# An environment of its own, without pip, which the last stage takes as it is.
RUN python -m venv --without-pip /opt/lightning-store \
 && pip --python /opt/lightning-store/bin/python install --no-compile "$(ls dist/*.whl)[server,postgres]"

FROM python:${PYTHON}-slim
# Its data is for the user alone. But others may pass: podman makes it the home of a user that the image does not know, and the
# driver of PostgreSQL looks for certificates in the home folder.
RUN groupadd --gid 10001 store \
 && useradd --uid 10001 --gid store --no-create-home --home-dir /var/lib/lightning-store --shell /usr/sbin/nologin store \
 && install --directory --owner store --group store --mode 0711 /var/lib/lightning-store \
 && pip uninstall --yes --root-user-action ignore pip
COPY --from=build /opt/lightning-store /opt/lightning-store
# Python's library comes without bytecode, and nobody could write it later: each start and health check would compile anew.
# Unchecked, because the times of files, which are in bytecode else, change on the way into a layer.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/local/lib/python3.* /opt/lightning-store/lib
ENV PATH=/opt/lightning-store/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
# Databases of SQLite are kept here: sqlite:store.db
WORKDIR /var/lib/lightning-store
VOLUME /var/lib/lightning-store
EXPOSE 4747 4318
STOPSIGNAL SIGTERM
# LIGHTNING_STORE_SERVER and LIGHTNING_STORE_TLS_CA tell it of another port and of TLS. It needs no token.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["lightning-store-grpc", "health"]
ENTRYPOINT ["lightning-store-grpc"]
# On loopback. For others: serve --host 0.0.0.0 --auth-tokens FILE
CMD ["serve"]
