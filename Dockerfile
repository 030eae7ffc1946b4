# The image of every host of the Docker testbed: router, clients and servers. ./setup.sh builds it.
# Two stages: what compiles stays in the first. It needs no BuildKit: the engine may be old.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
LABEL flowlb.testbed="build"
ENV DEBIAN_FRONTEND=noninteractive PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1
# Where packages come from, for those whose registries or ways out are not the usual ones; see docker/build.d/README.md.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates cargo gcc libc6-dev python3-venv >/dev/null \
    && python3 -m venv /opt/flowlb
COPY docker/build.d/ /tmp/build.d/
RUN cp /tmp/build.d/*.crt /usr/local/share/ca-certificates/ 2>/dev/null; update-ca-certificates >/dev/null \
    && cp /tmp/build.d/pip.conf /etc/pip.conf 2>/dev/null; mkdir -p /root/.cargo \
    && cp /tmp/build.d/cargo.toml /root/.cargo/config.toml 2>/dev/null; true
WORKDIR /src
COPY pyproject.toml Cargo.toml Cargo.lock README.md LICENSE ./
COPY build_backend/ build_backend/
COPY rust/ rust/
COPY python/ python/
RUN /opt/flowlb/bin/pip install --quiet '.[report]'

FROM ${BASE}
LABEL flowlb.testbed="image"
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        apache2-bin curl ethtool iproute2 iputils-ping less nftables procps python3 tcpdump vim-tiny >/dev/null \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/flowlb /opt/flowlb
COPY examples/*.toml /etc/lb/
COPY examples/*.py docker/host.sh /usr/local/bin/
RUN ln -s /opt/flowlb/bin/lb /usr/local/bin/lb && lb --version
WORKDIR /root
CMD ["host.sh"]
