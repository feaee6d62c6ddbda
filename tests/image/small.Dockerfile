# What the tests build where the image's size would only cost time: it answers as the image does, and holds nothing.
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS runtime
ARG LINE
ARG PATCHES
ARG PINS_SHA256
ARG UNITS
ARG VLLM_COMMIT
ARG IMAGE_CREATED
ARG SPARKWRIGHT_REVISION
ARG SPARKWRIGHT_VERSION
COPY small-entrypoint.sh /opt/sparkwright/entrypoint.sh
RUN echo "{\"line\": \"$LINE\", \"revision\": \"$SPARKWRIGHT_REVISION\", \"pins\": \"$PINS_SHA256\"," \
    "\"vllm_commit\": \"$VLLM_COMMIT\", \"patches\": []}" >/opt/sparkwright/about.json
RUN date +%N >/opt/differs-each-time
HEALTHCHECK CMD ["/opt/sparkwright/entrypoint.sh", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/sparkwright/entrypoint.sh"]
LABEL org.opencontainers.image.title="sparkwright" \
      org.opencontainers.image.version="${SPARKWRIGHT_VERSION}" \
      org.opencontainers.image.revision="${SPARKWRIGHT_REVISION}" \
      org.opencontainers.image.created="${IMAGE_CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      sparkwright.line="${LINE}" \
      sparkwright.vllm.version="${LINE}" \
      sparkwright.vllm.commit="${VLLM_COMMIT}" \
      sparkwright.patches="${PATCHES}" \
      sparkwright.pins.sha256="${PINS_SHA256}" \
      sparkwright.units="${UNITS}"
