#!/usr/bin/env bash
# The Docker testbed: builds the image from Dockerfile and launches a router, five clients and three servers.
set -euo pipefail
cd "$(dirname "$0")"
exec 3>&1 # where a dry run prints, also when a command's output is redirected

BASE=debian:trixie-slim
PACKAGED_BASE=flowlb-base:trixie # made by --base-from-packages
HOSTS=(router=1 client1=21 client2=22 client3=23 client4=24 client5=25 server1=31 server2=32 server3=33)
ENGINE_NUMBER=254 # the engine's own end of the network; the router must have .1
READY_DEADLINE_S=30

command=up
prefix=""
subnet=198.18.1.0/24
image=flowlb-testbed
ca=${SSL_CERT_FILE:-}
dry_run=no
base_from_packages=no
remove_image=no
made=()          # what this run has made, for undo
archive=base.tar # of the packaged base; a temporary file

usage() {
    cat <<'TEXT'
Usage: ./setup.sh [up | build | down | status] [OPTION]...

  up       build the image, launch the containers router, client1..5, server1..3 (default; safe to repeat)
  build    build the image, launch nothing
  down     remove the containers and their network; --image: the images, too
  status   show what there is

Log in with `docker exec -it client1 bash`.

  --base-from-packages  make the base image from Debian's packages (mmdebstrap, as root) instead of pulling it
  --ca FILE             certificates (PEM) to trust while the image is built (default: $SSL_CERT_FILE)
  --prefix TEXT         put this before the names of containers and network
  --subnet A.B.C.0/24   addresses of the hosts (default: 198.18.1.0/24)
  --image [NAME]        with `down`: remove the images; else the image's name (default: flowlb-testbed)
  --dry-run             print the commands, run none
  -h, --help            show this

Exit status: 0 fine, 1 failed, 2 wrong usage, 4 no permission, 5 no Docker engine answers.
TEXT
}

say() { echo "setup.sh: $*" >&2; }
# tell: what has been done; a dry run has done nothing.
tell() { [ "$dry_run" = yes ] || say "$*"; }

# die STATUS MESSAGE: end with one line that says what is wrong and what to do.
die() {
    local status=$1
    shift
    say "$*"
    exit "$status"
}

# run COMMAND...: run it, or print it when this is a dry run.
run() {
    if [ "$dry_run" = yes ]; then
        echo "${*@Q}" | sed -E "s/'([A-Za-z0-9_.,:=@/+-]+)'/\1/g" >&3
    else
        "$@"
    fi
}

# engine COMMAND...: as `docker COMMAND...`; failing, end with the last line it wrote.
engine() {
    local output
    if [ "$dry_run" = yes ]; then
        run docker "$@"
    elif ! output=$(docker "$@" 2>&1); then
        die 1 "docker $1 $2: $(tail -n 1 <<<"$output")"
    fi
}

# look COMMAND...: a question to the engine. A dry run asks none, so it prints what a first run does.
look() { [ "$dry_run" = no ] && docker "$@" 2>/dev/null; }

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        up | build | down | status) command=$1 ;;
        --base-from-packages) base_from_packages=yes ;;
        --dry-run) dry_run=yes ;;
        --ca | --prefix | --subnet)
            [ $# -ge 2 ] || die 2 "$1 needs a value; see ./setup.sh --help"
            declare -g "${1#--}=$2"
            shift
            ;;
        --image)
            remove_image=yes
            if [ $# -ge 2 ] && [[ $2 != -* ]]; then
                image=$2
                shift
            fi
            ;;
        -h | --help) usage && exit 0 ;;
        *) die 2 "unknown argument '$1'; see ./setup.sh --help" ;;
        esac
        shift
    done
    [[ $subnet =~ ^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}0/24$ ]] || die 2 "--subnet $subnet: must look like 198.18.1.0/24"
    [[ $prefix =~ ^([a-z0-9][a-z0-9-]*)?$ ]] || die 2 "--prefix $prefix: a-z, 0-9 and '-' only, no '-' first"
    [ -z "$ca" ] || [ -r "$ca" ] || die 2 "--ca $ca: no such file, or not readable"
    network=${prefix}flowlb
}

check_engine() {
    [ "$dry_run" = yes ] && return
    command -v docker >/dev/null ||
        die 1 "Docker is not installed: install it (Debian: apt install docker.io), or run \`lb testbed up\`, which needs none"
    local output
    output=$(docker version --format '{{.Server.Version}}' 2>&1) && return
    case $output in
    *"permission denied"*) die 4 "no permission to use Docker: run as root, or join its group (usermod -aG docker $(id -un)) and log in again" ;;
    *) die 5 "the Docker engine does not answer: start it (systemctl start docker). It said: $(tail -n 1 <<<"$output")" ;;
    esac
}

prepare_base() {
    # Made once, it serves until it is removed: a second run needs no flag.
    if look image inspect "$PACKAGED_BASE" >/dev/null; then
        BASE=$PACKAGED_BASE
        return
    fi
    if [ "$base_from_packages" = no ]; then
        look image inspect "$BASE" >/dev/null && return
        run docker pull "$BASE" >&2 || die 1 "cannot pull $BASE: without a way to a registry, try --base-from-packages"
        return
    fi
    BASE=$PACKAGED_BASE
    [ "$dry_run" = yes ] || command -v mmdebstrap >/dev/null ||
        die 1 "--base-from-packages needs mmdebstrap: apt install mmdebstrap"
    [ "$dry_run" = yes ] || archive=$(mktemp --suffix .tar)
    # As Debian's own images for containers: nothing that only people read, and no wait for the disk after every file.
    run mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' trixie "$archive" >&2 ||
        die 1 "mmdebstrap could not make the base image; what it said is above"
    engine import --change 'LABEL flowlb.testbed=base' "$archive" "$BASE"
    [ "$dry_run" = yes ] || rm -f "$archive"
}

build_image() {
    local options=(--build-arg "BASE=$BASE" --tag "$image") name
    # Names without a value: the engine's client takes it from the environment.
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || options+=(--build-arg "$name")
    done
    if [ -n "$ca" ]; then
        run cp "$ca" docker/build.d/given.crt
    fi
    tell "building the image $image: some minutes the first time"
    run docker build --force-rm "${options[@]}" . >&2 || die 1 "the image could not be built; what the engine said is above"
    [ "$dry_run" = yes ] || rm -f docker/build.d/given.crt
}

# owner NAME: whose container this is: `none`, `ours` or `other`.
owner() {
    local label
    label=$(look container inspect --format '{{index .Config.Labels "flowlb.testbed"}}' "$1") || { echo none && return; }
    [ "$label" = host ] && echo ours || echo other
}

check_names() {
    local host
    for host in "${HOSTS[@]}"; do
        [ "$(owner "$prefix${host%=*}")" != other ] ||
            die 1 "a container $prefix${host%=*} exists and is not ours: remove it (docker rm -f $prefix${host%=*}), or choose other names with --prefix"
    done
}

make_network() {
    local label holder
    if label=$(look network inspect --format '{{index .Labels "flowlb.testbed"}} {{(index .IPAM.Config 0).Subnet}}' "$network"); then
        [ "$label" = "network $subnet" ] && return
        die 1 "a network $network exists and is not ours, or has other addresses: ./setup.sh down, or choose another name with --prefix"
    fi
    holder=$(range_holder)
    [ -z "$holder" ] || die 1 "the addresses $subnet are taken by $holder: remove it, or choose others with --subnet"
    # Internal: the engine makes no way out. Its own end must not be the router's address.
    engine network create --internal --subnet "$subnet" --gateway "${subnet%0/24}$ENGINE_NUMBER" \
        --label flowlb.testbed=network --label "flowlb.prefix=$prefix" "$network"
    made+=("network $network")
}

# range_holder: what has our addresses already, a network of Docker or a route of this host; or nothing.
range_holder() {
    local id found
    for id in $(look network ls --quiet); do
        found=$(look network inspect --format '{{.Name}}{{range .IPAM.Config}} {{.Subnet}}{{end}}' "$id") || continue
        case " ${found#* } " in *" $subnet "*) echo "the Docker network ${found%% *}" && return ;; esac
    done
    [ "$dry_run" = no ] && command -v ip >/dev/null || return 0
    ip -4 route show root "$subnet" 2>/dev/null | sed -nE '1s/^([^ ]+).* dev ([^ ]+).*/the route to \1 by \2/p'
}

launch() {
    local name=$1 number=$2 wanted
    if [ "$(owner "$prefix$name")" = ours ]; then
        wanted=$(look image inspect --format '{{.Id}}' "$image")
        if [ "$(look container inspect --format '{{.Image}} {{.State.Running}}' "$prefix$name")" = "$wanted true" ]; then
            tell "$prefix$name runs already"
            return
        fi
        tell "$prefix$name is stopped or of an older image: made anew"
        engine rm --force "$prefix$name"
    fi
    made+=("container $prefix$name")
    engine run --detach --init --name "$prefix$name" --hostname "$name" --network "$network" --ip "${subnet%0/24}$number" \
        --cap-add NET_ADMIN --cap-add NET_RAW --sysctl net.ipv4.ip_forward=0 \
        --label flowlb.testbed=host --label "flowlb.prefix=$prefix" "$image"
}

# wait_ready NAME: until the container has its routes and its programs run.
wait_ready() {
    local name=$1 deadline=$((SECONDS + READY_DEADLINE_S))
    [ "$dry_run" = no ] || return 0
    until docker exec "$name" test -e /run/testbed-ready 2>/dev/null; do
        [ "$(look container inspect --format '{{.State.Running}}' "$name")" = true ] ||
            die 1 "$name ended: $(docker logs --tail 1 "$name" 2>&1)"
        [ "$SECONDS" -lt "$deadline" ] || die 1 "$name is not ready after $READY_DEADLINE_S s: $(docker logs --tail 1 "$name" 2>&1)"
        sleep 0.1
    done
}

# undo: remove what this run has made, the last first.
undo() {
    local index
    [ "$dry_run" = no ] || return 0
    rm -f docker/build.d/given.crt "$archive"
    for ((index = ${#made[@]} - 1; index >= 0; index--)); do
        case ${made[index]} in
        container\ *) docker rm --force "${made[index]#* }" >/dev/null 2>&1 || true ;;
        network\ *) docker network rm "${made[index]#* }" >/dev/null 2>&1 || true ;;
        esac
    done
}

build() {
    check_engine
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    prepare_base
    build_image
}

up() {
    local host
    check_engine
    check_names
    build
    make_network
    for host in "${HOSTS[@]}"; do launch "${host%=*}" "${host#*=}"; done
    for host in "${HOSTS[@]}"; do wait_ready "$prefix${host%=*}"; done
    trap - EXIT
    # Images that this build has replaced and no container uses.
    look image prune --force --filter label=flowlb.testbed=image >/dev/null || true
    tell "nine containers are up: docker exec -it ${prefix}client1 bash; ./setup.sh down${prefix:+ --prefix $prefix} removes them"
}

down() {
    local containers
    check_engine
    if [ "$dry_run" = yes ]; then
        containers=("${HOSTS[@]/%=*/}")
        containers=("${containers[@]/#/$prefix}")
    else
        mapfile -t containers < <(docker ps --all --quiet --filter label=flowlb.testbed=host --filter "label=flowlb.prefix=$prefix")
    fi
    [ ${#containers[@]} -eq 0 ] || engine rm --force "${containers[@]}"
    if [ "$dry_run" = yes ] || [ -n "$(docker network ls --quiet --filter label=flowlb.testbed=network --filter "name=^$network\$")" ]; then
        engine network rm "$network"
    fi
    if [ "$remove_image" = yes ]; then
        for name in "$image" "$PACKAGED_BASE"; do
            if [ "$dry_run" = yes ] || look image inspect "$name" >/dev/null; then engine rmi "$name"; fi
        done
        engine image prune --force --filter label=flowlb.testbed
    fi
    tell "nothing of the testbed is left"
}

status() {
    check_engine
    run docker ps --all --filter label=flowlb.testbed=host --filter "label=flowlb.prefix=$prefix" \
        --format 'table {{.Names}}\t{{.Status}}\t{{.Image}}'
    run docker network ls --filter label=flowlb.testbed=network --filter "name=^$network\$" --format 'network {{.Name}}'
}

parse_arguments "$@"
"$command"
