# The image: vLLM for the DGX Spark, from pins to a runtime that can still compile kernels. docs/image.md explains it.
#
# A stage is called by what it holds. Each calls the command that a developer runs without Docker, and ends with a proof.
# There is no CUDA base image: compiler, libraries and headers are the pinned wheels that `./build.sh --host` uses.

# Made from pins/ and patches/ by `sparkwright pins dockerfile`; edit those, not these lines.
ARG BASE_IMAGE=ubuntu:24.04@sha256:008173c23f95b170204355c12626cb5a965d779a7e1283b09e9cffbb1bf33ca3
ARG APT_SNAPSHOT=20260925T090000Z
ARG LINE=0.33.0
ARG REQUIREMENTS=image-0.33.0.txt
ARG VLLM_COMMIT=4ba787ec9
ARG PINS_SHA256=9c0ea85e36a2f372ab6f8dfc54ffbba6da85ca9be2b7c61918fc8b7ce93393e1
ARG PATCHES="vllm/hadacore-sm12x \
vllm/lean-gb10-externals \
vllm/marlin-repack-sm12x \
vllm/refuse-plain-sm12x \
vllm/uma-graph-memory \
vllm/drop-scaled-mm-c2x \
vllm/e2m1-portable-convert \
vllm/native-sm121a-code \
flashinfer/moe-utils-sm12x"
# End of what is made from pins/ and patches/.
ARG UNITS=native
ARG EXTERNALS=wheel
ARG JIT_MODULES=
ARG BUILD_JOBS=

FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-Eeuo", "pipefail", "-c"]
ARG APT_SNAPSHOT
# Releases are those of the archive's snapshot, where it has one for the architecture (pins/base.toml). ca-certificates
# comes first, because a snapshot is served by HTTPS. Logs and caches go: they differ with each build.
# hadolint ignore=DL3008
RUN export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -qq; \
    apt-get install -qq --no-install-recommends ca-certificates; \
    apt-get update -qq -o APT::Snapshot="$APT_SNAPSHOT"; \
    apt-get install -qq --no-install-recommends -o APT::Snapshot="$APT_SNAPSHOT" \
        g++ ibverbs-providers iproute2 libibverbs1 libnuma1 librdmacm1 python3 python3-dev python3-venv; \
    rm -rf /var/cache/apt/*.bin /var/cache/ldconfig/* /var/lib/apt/lists/* /var/log/*.log /var/log/apt/*; \
    g++ --version; python3 --version
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

# What compiles, from its lock alone: nvcc and its parts, torch, CMake, ninja.
FROM base AS toolchain
ARG LINE
# hadolint ignore=DL3008
RUN apt-get update -qq; \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends ccache; \
    rm -rf /var/lib/apt/lists/*; \
    ccache --version
COPY requirements/build-${LINE}.txt /opt/toolchain.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/toolchain; \
    /opt/toolchain/bin/pip install --quiet --no-compile --no-deps --require-hashes --requirement /opt/toolchain.txt; \
    ln -s /opt/toolchain/lib/python3.*/site-packages/nvidia/cu13 /opt/toolchain/cuda; \
    /opt/toolchain/cuda/bin/nvcc --version

FROM base AS tool
COPY requirements/sparkwright.txt /opt/sparkwright/requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/tool; \
    /opt/tool/bin/pip install --quiet --no-compile --no-deps --require-hashes \
        --requirement /opt/sparkwright/requirements/sparkwright.txt; \
    /opt/tool/bin/python -c 'import pydantic, requests, typer; print(pydantic.VERSION)'
# 1980, with which the dates in wheels begin: what is packed of the same files has the same hash.
ENV SPARKWRIGHT_ROOT=/opt/sparkwright SPARKWRIGHT_CACHE=/opt/cache PYTHONPATH=/opt/sparkwright/src \
    SOURCE_DATE_EPOCH=315532800 PATH=/opt/tool/bin:$PATH

# The rooms of the package that compiling needs: a change of any other compiles nothing again.
FROM tool AS compiling
COPY src/sparkwright/__init__.py src/sparkwright/errors.py src/sparkwright/files.py src/sparkwright/paths.py \
     src/sparkwright/report.py src/sparkwright/run.py /opt/sparkwright/src/sparkwright/
COPY src/sparkwright/pins /opt/sparkwright/src/sparkwright/pins
COPY src/sparkwright/sources /opt/sparkwright/src/sparkwright/sources
COPY src/sparkwright/patching /opt/sparkwright/src/sparkwright/patching
COPY src/sparkwright/audit /opt/sparkwright/src/sparkwright/audit
COPY src/sparkwright/native /opt/sparkwright/src/sparkwright/native
COPY pins/toolchain.toml pins/releases.toml /opt/sparkwright/pins/
ARG LINE
COPY pins/${LINE}.toml /opt/sparkwright/pins/

FROM compiling AS sources
RUN --mount=type=cache,target=/opt/cache/downloads \
    python -m sparkwright.native sources --line "$LINE"; \
    rm -rf /opt/cache/trees

FROM sources AS patched
COPY cuda_headers /opt/sparkwright/cuda_headers
COPY tuning_configs /opt/sparkwright/tuning_configs
COPY patches /opt/sparkwright/patches
RUN --mount=type=cache,target=/opt/cache/downloads \
    python -m sparkwright.native patched --line "$LINE"

FROM toolchain AS compiler
ENV SPARKWRIGHT_ROOT=/opt/sparkwright SPARKWRIGHT_CACHE=/opt/cache PYTHONPATH=/opt/sparkwright/src \
    SOURCE_DATE_EPOCH=315532800 PATH=/opt/tool/bin:$PATH
COPY --from=compiling /opt/tool /opt/tool
COPY --from=compiling /opt/sparkwright /opt/sparkwright
COPY patches/cuda /opt/sparkwright/patches/cuda
COPY requirements/build-${LINE}.txt /opt/sparkwright/requirements/

# The kernels of this project, a wheel of their own.
FROM compiler AS kernels
ARG BUILD_JOBS
COPY cuda_headers /opt/sparkwright/cuda_headers
COPY kernels /opt/sparkwright/kernels
RUN --mount=type=cache,target=/opt/cache/downloads \
    --mount=type=cache,target=/opt/cache/ccache \
    python -m sparkwright.native kernels --line "$LINE" --toolchain /opt/toolchain --jobs "$BUILD_JOBS"

# Only what compiling reads comes in, compared by content: a patch of vLLM's Python leaves this stage as it is.
FROM compiler AS native
ARG UNITS
ARG BUILD_JOBS
COPY --from=sources /opt/sparkwright/build/${LINE}/cutlass /opt/sparkwright/build/${LINE}/cutlass
COPY --from=patched /opt/sparkwright/build/${LINE}/compile-inputs /opt/sparkwright/build/${LINE}/vllm
RUN --mount=type=cache,target=/opt/cache/downloads \
    --mount=type=cache,target=/opt/cache/ccache \
    python -m sparkwright.native native --line "$LINE" --toolchain /opt/toolchain --units "$UNITS" \
        --jobs "$BUILD_JOBS"

FROM native AS wheel
ARG EXTERNALS
COPY --from=patched /opt/sparkwright/build/${LINE}/rest /opt/sparkwright/build/${LINE}/vllm
RUN --mount=type=cache,target=/opt/cache/downloads \
    --mount=type=cache,target=/opt/cache/ccache \
    --mount=type=cache,target=/opt/cache/translated \
    python -m sparkwright.native wheel --line "$LINE" --toolchain /opt/toolchain --units "$UNITS" \
        --jobs "$BUILD_JOBS" --externals "$EXTERNALS"

FROM tool AS layers
ARG LINE
ARG REQUIREMENTS
COPY pins /opt/sparkwright/pins
COPY requirements /opt/sparkwright/requirements
COPY src /opt/sparkwright/src
RUN python -m sparkwright.image.layers "$REQUIREMENTS" /layers

# The series of what is installed rather than built here.
FROM compiling AS series
COPY patches/cuda /opt/sparkwright/patches/cuda
COPY patches/flashinfer /opt/sparkwright/patches/flashinfer
COPY cuda_headers /opt/sparkwright/cuda_headers

# What is locked, in layers by how often it changes, each installed again only when it has changed.
FROM base AS packages
# pip's bytecode holds the time of its files.
RUN python3 -m venv /opt/venv; \
    find /opt/venv -name __pycache__ -prune -exec rm -r {} +; \
    /opt/venv/bin/python --version
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=layers,source=/layers/cuda,target=/layer \
    python3 /layer/install_layer.py /layer /opt/venv
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=layers,source=/layers/torch,target=/layer \
    python3 /layer/install_layer.py /layer /opt/venv
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=layers,source=/layers/other,target=/layer \
    python3 /layer/install_layer.py /layer /opt/venv; \
    /opt/venv/bin/python -W ignore -c 'import modelopt.torch.export, pyarrow.parquet, torch; print(torch.__version__)'
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=layers,source=/layers/flashinfer,target=/layer \
    python3 /layer/install_layer.py /layer /opt/venv
ARG LINE
RUN --mount=type=bind,from=series,source=/opt,target=/mnt \
    SPARKWRIGHT_ROOT=/mnt/sparkwright PYTHONPATH=/mnt/sparkwright/src \
    /mnt/tool/bin/python -m sparkwright.native packages --line "$LINE" --toolchain /opt/venv; \
    ln -s /opt/venv/lib/python3.*/site-packages/nvidia/cu13 /usr/local/cuda; \
    /usr/local/cuda/bin/nvcc --version
ENV PATH=/opt/venv/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    CUDA_HOME=/usr/local/cuda \
    FLASHINFER_CUDA_ARCH_LIST=12.1a

FROM packages AS jit-cache
ARG JIT_MODULES
ARG BUILD_JOBS
RUN --mount=type=bind,from=series,source=/opt,target=/mnt \
    --mount=type=cache,target=/opt/cache \
    SPARKWRIGHT_ROOT=/mnt/sparkwright SPARKWRIGHT_CACHE=/opt/cache PYTHONPATH=/mnt/sparkwright/src \
    /mnt/tool/bin/python -m sparkwright.native jit-cache --line "$LINE" --toolchain /opt/venv \
        --modules "$JIT_MODULES" --jobs "$BUILD_JOBS"; \
    mkdir /modules; \
    cp -a /opt/venv/lib/python3.*/site-packages/flashinfer/data/aot /modules/

FROM tool AS package
COPY LICENSE NOTICE README.md pyproject.toml /opt/sparkwright/
COPY src /opt/sparkwright/src
RUN pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels /opt/sparkwright; \
    ls /wheels

FROM packages AS runtime
ARG LINE
ARG UNITS
ARG EXTERNALS
RUN --mount=type=bind,from=wheel,source=/opt/sparkwright/build,target=/build \
    --mount=type=bind,from=kernels,source=/opt/sparkwright/build,target=/kernels \
    pip install --quiet --no-cache-dir --no-deps --no-index --no-compile \
        "/build/$LINE"/wheels/*.whl "/kernels/$LINE"/wheels/*.whl; \
    python -c 'from importlib.metadata import version; print(version("vllm"))'
RUN --mount=type=bind,from=jit-cache,source=/modules,target=/modules \
    cp -a /modules/aot /opt/venv/lib/python3.*/site-packages/flashinfer/data/; \
    ls /opt/venv/lib/python3.*/site-packages/flashinfer/data/aot
# One volume for all that is compiled or downloaded while serving; anyone may write there, as in /tmp.
ENV SPARKWRIGHT_ROOT=/opt/sparkwright \
    XDG_CACHE_HOME=/cache \
    CUDA_CACHE_PATH=/cache/cuda \
    CUDA_CACHE_MAXSIZE=4294967296 \
    DG_JIT_CACHE_DIR=/cache/deep_gemm \
    FLASHINFER_WORKSPACE_BASE=/cache \
    HF_HOME=/cache/huggingface \
    SPARKWRIGHT_CACHE=/cache/sparkwright \
    SPARKWRIGHT_CUOBJDUMP=/usr/local/cuda/bin/cuobjdump \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    VLLM_CACHE_ROOT=/cache/vllm
COPY LICENSE NOTICE entrypoint.sh /opt/sparkwright/
COPY pins /opt/sparkwright/pins
COPY requirements /opt/sparkwright/requirements
COPY patches /opt/sparkwright/patches
COPY cuda_headers /opt/sparkwright/cuda_headers
COPY tuning_configs /opt/sparkwright/tuning_configs
COPY recipes /opt/sparkwright/recipes
ARG SPARKWRIGHT_REVISION=
ARG SOURCE_DATE_EPOCH=
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    pip install --quiet --no-cache-dir --no-deps --no-index --no-compile /wheels/*.whl; \
    install -d -m 1777 /cache; \
    sparkwright about --line "$LINE" --revision "$SPARKWRIGHT_REVISION" --write /opt/sparkwright/about.json; \
    sparkwright about > /dev/null; \
    /opt/sparkwright/entrypoint.sh --dry-run serve --model proof > /dev/null
VOLUME /cache
EXPOSE 8888
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=30s --start-period=30m --start-interval=5s --retries=3 \
    CMD ["/opt/sparkwright/entrypoint.sh", "health"]
ENTRYPOINT ["/opt/sparkwright/entrypoint.sh"]
CMD ["serve"]
ARG SPARKWRIGHT_VERSION=
ARG SPARKWRIGHT_SOURCE=
ARG IMAGE_CREATED=
ARG PINS_SHA256
ARG PATCHES
ARG VLLM_COMMIT
LABEL org.opencontainers.image.title="sparkwright" \
      org.opencontainers.image.description="vLLM for the NVIDIA DGX Spark (GB10)" \
      org.opencontainers.image.version="${SPARKWRIGHT_VERSION}" \
      org.opencontainers.image.revision="${SPARKWRIGHT_REVISION}" \
      org.opencontainers.image.source="${SPARKWRIGHT_SOURCE}" \
      org.opencontainers.image.created="${IMAGE_CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-Proprietary" \
      sparkwright.line="${LINE}" \
      sparkwright.vllm.version="${LINE}" \
      sparkwright.vllm.commit="${VLLM_COMMIT}" \
      sparkwright.patches="${PATCHES}" \
      sparkwright.pins.sha256="${PINS_SHA256}" \
      sparkwright.units="${UNITS}" \
      sparkwright.externals="${EXTERNALS}"
