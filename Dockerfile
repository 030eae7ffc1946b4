# The image of every host of the Docker testbed: router, clients and servers. ./setup.sh builds it.
# What compiles and what makes the video stays in the first stages. It needs no BuildKit: the engine may be old.
ARG BASE=debian:trixie-slim

# The website with its video. ffmpeg stays here.
FROM ${BASE} AS website
LABEL flowlb.testbed="build"
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null
COPY python/lb/lab/testbed/www/ /tmp/www/
RUN mkdir /website && cp /tmp/www/*.html /tmp/www/*.css /tmp/www/*.js /tmp/www/*.svg /website/ \
    && /tmp/www/make-video.sh /website/vod && head -c 1000000 /dev/urandom >/website/1MB

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
    && cp /tmp/build.d/pip.conf /etc/pip.conf 2>/dev/null; mkdir -p ~/.cargo \
    && cp /tmp/build.d/cargo.toml ~/.cargo/config.toml 2>/dev/null; true
WORKDIR /src
COPY pyproject.toml Cargo.toml Cargo.lock README.md LICENSE ./
COPY build_backend/ build_backend/
COPY rust/ rust/
# Rust first, with an empty package: a change in Python does not compile it again.
RUN mkdir -p python/lb && touch python/lb/__init__.py \
    && /opt/flowlb/bin/pip wheel --quiet --no-deps --wheel-dir /tmp . && rm -r python
COPY python/ python/
RUN /opt/flowlb/bin/pip install --quiet '.[report]'

FROM ${BASE}
LABEL flowlb.testbed="image"
# `python3` is the one that has flowlb, for loadgen/loadgen.py.
ENV PATH=/opt/flowlb/bin:$PATH
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        apache2-bin curl ethtool iproute2 iputils-ping less nftables procps python3 tcpdump vim-tiny >/dev/null \
    && rm -rf /var/lib/apt/lists/*
COPY --from=website /website /var/www/testbed
COPY --from=build /opt/flowlb /opt/flowlb
COPY python/lb/lab/testbed/apache2/ /etc/lb/apache2/
COPY examples/*.toml /etc/lb/
# Whatever the umask of the checkout: `lb run` refuses a configuration that its group can write.
RUN chmod -R go-w /etc/lb
COPY examples/*.py docker/host.sh /usr/local/bin/
WORKDIR /root
COPY loadgen/ loadgen/
RUN ln -s /opt/flowlb/bin/lb /usr/local/bin/lb && ln -s /etc/lb/apache2/httpd /usr/local/sbin/httpd && lb --version
CMD ["host.sh"]
