# The image of every host of the Docker testbed: router, clients and servers. ./setup.sh builds it.
# What compiles and what makes the video stays in the first stages. Each step stands before those that change more
# often; settings come first, while the image is small: an engine may walk all of it at each step. It needs no
# BuildKit: the engine may be old.
ARG BASE=debian:trixie-slim

# The website's video, made anew when the script is another. ffmpeg stays here.
FROM ${BASE} AS video
LABEL flowlb.testbed="build"
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null
COPY python/lb/lab/testbed/www/make-video.sh /tmp/
RUN /tmp/make-video.sh /website/vod && head -c 1000000 /dev/urandom >/website/1MB

FROM ${BASE} AS build
LABEL flowlb.testbed="build"
# Where packages come from, for those whose registries are not the usual ones; see docker/build.d/README.md.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV DEBIAN_FRONTEND=noninteractive PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/build/bin:$PATH
WORKDIR /src
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates cargo gcc libc6-dev python3-venv >/dev/null \
    && python3 -m venv /opt/flowlb && python3 -m venv /opt/build
COPY docker/build.d/ docker/requirements.py pyproject.toml ./
# What the package needs, which changes less often than its sources.
RUN cp *.crt /usr/local/share/ca-certificates/ 2>/dev/null; update-ca-certificates >/dev/null \
    && cp pip.conf /etc/pip.conf 2>/dev/null; mkdir -p ~/.cargo && cp cargo.toml ~/.cargo/config.toml 2>/dev/null; \
    pip install --quiet --no-compile $(python3 requirements.py build) \
    && /opt/flowlb/bin/pip install --quiet $(python3 requirements.py run)
COPY Cargo.toml Cargo.lock README.md LICENSE ./
COPY build_backend/ build_backend/
COPY rust/ rust/
# Rust first, with an empty package: a change in Python does not compile it again.
RUN mkdir -p python/lb && touch python/lb/__init__.py \
    && pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /tmp . && rm -r python
COPY python/ python/
RUN pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /tmp . \
    && /opt/flowlb/bin/pip install --quiet --no-deps /tmp/flowlb-*.whl

FROM ${BASE}
LABEL flowlb.testbed="image"
# `python3` is the one that has flowlb, for loadgen/loadgen.py.
ENV PATH=/opt/flowlb/bin:$PATH
WORKDIR /root
CMD ["host.sh"]
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        apache2-bin curl ethtool iproute2 iputils-ping less nftables procps python3 tcpdump vim-tiny >/dev/null \
    && rm -rf /var/lib/apt/lists/*
COPY --from=video /website /var/www/testbed
COPY loadgen/ loadgen/
COPY examples/*.py docker/host.sh /usr/local/bin/
COPY examples/*.toml /etc/lb/
COPY python/lb/lab/testbed/www/*.html python/lb/lab/testbed/www/*.css python/lb/lab/testbed/www/*.js \
    python/lb/lab/testbed/www/*.svg /var/www/testbed/
COPY python/lb/lab/testbed/apache2/ /etc/lb/apache2/
COPY --from=build /opt/flowlb /opt/flowlb
# Whatever the umask of the checkout: `lb run` refuses a configuration that its group can write.
RUN chmod -R go-w /etc/lb \
    && ln -s /opt/flowlb/bin/lb /usr/local/bin/lb && ln -s /etc/lb/apache2/httpd /usr/local/sbin/httpd && lb --version
