#!/usr/bin/env bash
# Brings a Debian or Ubuntu machine to where `make build` (and with "test", `make test`) works:
# system packages, ONNX Runtime and OpenSlide in lib/, a Python with the test requirements in
# .tools/venv. Says what it does, does nothing twice, and leaves the rest of the machine alone.
#
#   ./setup.sh [test|bench]
#
# "test" adds a Python that tests hold our files against; "bench" the peers of the benchmarks, in
# .tools/bench (gigabytes: PyTorch is among them).
#
# Exit codes: 0 everything is there; 2 wrong usage; 3 something is missing and the last lines say
# how to get it.
set -euo pipefail
cd "$(dirname "$0")"

main() {
	case "${1-}" in
	"" | test | bench) ;;
	*)
		echo "usage: ./setup.sh [test|bench]" >&2
		exit 2
		;;
	esac
	command -v go >/dev/null || fail "Go is missing: install $(go_wanted) or newer from https://go.dev/dl and put it on PATH"

	local packages=()
	mapfile -t packages < <(missing_packages)
	# Only to fetch things with: a machine that has them all needs no pip.
	if { ! have_library onnxruntime || ! have_library openslide || { [ "${1-}" = test ] && ! have_venv test; } || { [ "${1-}" = bench ] && ! have_venv bench; }; } && ! python_with_pip >/dev/null; then
		packages+=(python3-pip)
	fi
	if [ ${#packages[@]} -gt 0 ]; then install_packages "${packages[@]}"; fi
	have_library onnxruntime || install_library onnxruntime "ONNX Runtime" "onnxruntime/capi/libonnxruntime.so.*"
	have_library openslide || install_library openslide OpenSlide openslide_bin/libopenslide.so.1
	if [ -n "${1-}" ]; then have_venv "$1" || install_venv "$1"; fi
}

# What a run leaves behind only while it lasts.
as_root=()
no_server=""
scratch=""
cleanup() {
	if [ -n "$no_server" ]; then "${as_root[@]}" rm -f "$no_server"; fi
	if [ -n "$scratch" ]; then rm -rf "$scratch"; fi
}
trap cleanup EXIT

say() { echo "setup: $*"; }

fail() {
	echo "setup: $*" >&2
	exit 3
}

go_wanted() { awk '$1 == "go" {print "Go " $2}' go.mod; }

# --- system packages ---

missing_packages() {
	local wanted
	mapfile -t wanted < <(awk '$1 == "host" {print $2}' apt-packages.txt)
	if ! command -v dpkg-query >/dev/null; then
		say "no dpkg here: install the counterparts of apt-packages.txt by hand if the build misses them" >&2
		return
	fi
	# dpkg-query fails where it does not know one of them, which only says that it is missing.
	printf '%s\n' "${wanted[@]}" | grep -vxFf <(
		dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null | sed -n 's/^installed //p'
	)
}

install_packages() {
	local log line="apt-get update && apt-get install --no-install-recommends $*"
	command -v apt-get >/dev/null || fail "no apt-get here: install the counterparts of $* by hand, then run this again"
	if [ "$(id -u)" != 0 ]; then
		sudo -n true 2>/dev/null || fail "system packages are missing: $*"$'\n'"run as root: $line"
		as_root=(sudo -n)
	fi
	say "installing $* and what they stand on (minutes, the first time)"
	# Debian starts a server as soon as the Postgres packages arrive. Nobody asked for that one.
	no_server=/etc/postgresql-common/createcluster.d/no-main-cluster.conf
	"${as_root[@]}" mkdir -p "${no_server%/*}"
	echo "create_main_cluster = false" | "${as_root[@]}" tee "$no_server" >/dev/null

	log=$(mktemp)
	local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
	# A foreign source that does not answer is no reason to stop: the install decides.
	"${apt[@]}" update >"$log" 2>&1 || true
	if ! "${apt[@]}" install --no-install-recommends "$@" >>"$log" 2>&1; then
		tail -n 20 "$log" >&2
		fail "apt-get could not install the packages (whole log: $log); check the network and the apt sources, then run as root: $line"
	fi
	rm -f "$log"
}

# --- pip ---

no_pip="no python3 with pip is here; install pip, then run this again"
no_pypi="could not fetch from PyPI; check the network (pip honours HTTPS_PROXY and PIP_INDEX_URL), then run this again"

# The first Python that has pip: the user's, else Debian's.
python_with_pip() {
	local python
	for python in python3 /usr/bin/python3; do
		if "$python" -m pip --version >/dev/null 2>&1; then
			echo "$python"
			return
		fi
	done
	return 1
}

# --- shared libraries, out of Python wheels ---

# lib/lib<name>.so.<version of the wheel>
library() {
	echo "lib/lib$1.so.$(sed -n 's/^[a-z-]*==\([0-9.]*\).*/\1/p' "internal/tools/$1-requirements.txt")"
}

have_library() {
	[ -f "$(library "$1")" ] && sha256sum --check --status "lib/$1.sha256" 2>/dev/null
}

# install_library NAME TITLE PLACE: PLACE is a pattern for the one file in the wheel.
install_library() {
	local library name pinned=internal/tools/$1-requirements.txt python machine found
	library=$(library "$1")
	name=${library##*/}
	python=$(python_with_pip) || fail "$no_pip"
	machine=$(uname -m)
	case "$machine" in
	x86_64 | aarch64) ;;
	*) fail "no $2 is pinned for $machine in $pinned; build it and set COVERSLIP_${1^^} to the library" ;;
	esac
	say "fetching $2 into $library"
	mkdir -p lib
	scratch=$(mktemp -d lib/.fetch-XXXXXX)
	"$python" -m pip --disable-pip-version-check download --quiet --no-deps --require-hashes --only-binary=:all: \
		--implementation cp --python-version 3.11 --platform "manylinux_2_28_$machine" \
		--dest "$scratch" --requirement "$pinned" || fail "$no_pypi"
	"$python" -m zipfile -e "$scratch"/*.whl "$scratch"
	found=$(find "$scratch" -path "$scratch/$3" -type f)
	[ -f "$found" ] || fail "the wheel holds no $3; see $pinned"
	mv "$found" "$scratch/$name"
	# The checksum goes first, so that no library stands in its place without one.
	(cd "$scratch" && sha256sum "$name") | sed 's|  |  lib/|' >"$scratch/sha256"
	mv "$scratch/sha256" "lib/$1.sha256"
	mv "$scratch/$name" "$library"
	find lib -maxdepth 1 -name "lib$1.so.*" ! -name "$name" -delete
	rm -rf "$scratch"
	scratch=""
}

# --- Python for tests and benchmarks ---

# For tests: other tools' readers hold our files to their formats. For benchmarks: the peers.
declare -A venv=([test]=.tools/venv [bench]=.tools/bench)
declare -A requirements=([test]=internal/tools/python-requirements.txt [bench]=bench/requirements.txt)

have_venv() { cmp -s "${requirements[$1]}" "${venv[$1]}/requirements.txt" && [ -x "${venv[$1]}/bin/python" ]; }

install_venv() {
	local python dir=${venv[$1]}
	python=$(python_with_pip) || fail "$no_pip"
	say "making a Python for ${1} in $dir"
	rm -rf "$dir"
	# Without pip inside, so that Debian's python3-venv is not needed.
	"$python" -m venv --without-pip "$dir" || fail "$python makes no virtual environment; install its venv module, then run this again"
	"$python" -m pip --disable-pip-version-check --python "$dir/bin/python" install \
		--quiet --only-binary=:all: --requirement "${requirements[$1]}" || fail "$no_pypi"
	# Its packages ask for others, of gigabytes, that what is measured does without.
	if [ "$1" = bench ]; then
		"$python" -m pip --disable-pip-version-check --python "$dir/bin/python" install \
			--quiet --only-binary=:all: --no-deps --requirement bench/requirements-alone.txt || fail "$no_pypi"
	fi
	cp "${requirements[$1]}" "$dir/requirements.txt"
}

main "$@"
