# Three images from one checkout: operator, agent and runtime. Each contains only the packages that it needs.
#   docker build --target operator -t aurora-operator .
# Every package is checked against the hash in its lock file. The environment of an image holds these packages only: no
# pip, and what `make audit` lists. For a base image that cannot change under its tag, pass its
# digest: --build-arg BASE=docker.io/library/python:3.11-slim@sha256:…
# The images run as uid 10001 with a read-only root. They write to /tmp and /var/lib/aurora only, which are volumes. No
# Python process imports from there: the working directory is /, and Python searches neither it nor the user's site.

ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS wheel
WORKDIR /src
COPY requirements/build.txt /requirements.txt
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes -r /requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY crds/aurora_api crds/aurora_api
COPY operator/aurora_operator operator/aurora_operator
COPY operator/aurora_cli operator/aurora_cli
COPY runtime/aurora_protocol runtime/aurora_protocol
COPY runtime/aurora_store runtime/aurora_store
COPY runtime/aurora_runtime runtime/aurora_runtime
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${BASE} AS operator-packages
COPY requirements/operator.txt /requirements.txt
RUN python -m venv --without-pip /opt/aurora \
 && pip --python /opt/aurora/bin/python install --no-cache-dir --no-deps --require-hashes -r /requirements.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/aurora/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM ${BASE} AS agent-packages
COPY requirements/agent.txt /requirements.txt
RUN python -m venv --without-pip /opt/aurora \
 && pip --python /opt/aurora/bin/python install --no-cache-dir --no-deps --require-hashes -r /requirements.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/aurora/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM ${BASE} AS runtime-packages
COPY requirements/runtime.txt /requirements.txt
RUN python -m venv --without-pip /opt/aurora \
 && pip --python /opt/aurora/bin/python install --no-cache-dir --no-deps --require-hashes -r /requirements.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/aurora/bin/python install --no-cache-dir --no-deps /wheels/*.whl

# The entry in passwd is for libraries that ask for the user's name and home.
FROM ${BASE} AS rootless
RUN echo 'aurora:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'aurora:x:10001:' >> /etc/group
ENV PATH=/opt/aurora/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 \
    HOME=/tmp USER=aurora
USER 10001:10001
WORKDIR /

FROM rootless AS operator
COPY --from=operator-packages /opt/aurora /opt/aurora
CMD ["python", "-P", "-m", "aurora_operator"]

FROM rootless AS agent
COPY --from=agent-packages /opt/aurora /opt/aurora
CMD ["python", "-P", "-m", "aurora_runtime.serving.agent", "serve"]

# Compilers: Triton compiles small launchers when a kernel is first used, and SGLang compiles whole kernels.
# libnuma: SGLang pins memory with it.
# CUDA comes as Python packages. They have no library names without a version and no stub of the driver's library, so
# links are made for both. The last step compiles and links a kernel to prove that everything needed is there.
FROM rootless AS runtime
USER root
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libc6-dev libnuma1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=runtime-packages /opt/aurora /opt/aurora
ENV CUDA_HOME=/opt/aurora/cuda
RUN ln -s "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13" "$CUDA_HOME" \
 && cd "$CUDA_HOME/lib" && ln -s lib ../lib64 && mkdir stubs \
 && for library in *.so.*; do ln -sf "$library" "${library%%.so.*}.so"; done \
 && ln -s "/usr/lib/$(gcc -print-multiarch)/libcuda.so.1" stubs/libcuda.so
RUN printf '#include <cuda_bf16.h>\n#include <cuda/std/type_traits>\n__global__ void f(__nv_bfloat16 *x) { *x = __hmul(*x, *x); }\nvoid g(__nv_bfloat16 *x) { f<<<1, 1>>>(x); }\n' > /tmp/proof.cu \
 && "$CUDA_HOME/bin/nvcc" -std=c++20 -Xcompiler -fPIC -gencode=arch=compute_90a,code=sm_90a -c /tmp/proof.cu -o /tmp/proof.o \
 && c++ -shared /tmp/proof.o -L"$CUDA_HOME/lib64" -lcudart -o /tmp/proof.so \
 && rm /tmp/proof.*
USER 10001:10001
CMD ["python", "-P", "-m", "aurora_runtime.serving.launcher"]
