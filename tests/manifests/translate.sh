#!/usr/bin/env bash
# Writes the translated.yaml files: what Istio and Envoy Gateway make of the files beside them. Started by `make translated`.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
bin=$(dirname "$(tests/tools.sh path translators)")

# translated OUT COMMAND FILE...: the output of a translator, with what it was made of.
translated() {
  local out=$1 command=$2 made
  shift 2
  made=$("$bin/"$command "$@")
  {
    echo "# What ${command%%-*} makes of $(basename -a "$@" | paste -sd' '). Do not edit: make translated"
    # The tests compare this with the files. Comments and empty lines do not count.
    echo "# sources: $(cat "$@" | grep -vE '^[[:space:]]*(#|$)' | sha256sum | cut -d' ' -f1)"
    printf '%s\n' "$made"
  } >"$out"
}

cd envoy/gateway
translated translated.yaml gateway-translate platform.yaml routes.yaml
cd ../istio
translated translated-sidecar.yaml "istio-translate shop/imgproxy" sidecar.yaml
translated translated-gateway.yaml "istio-translate gateways/images-gateway" gateway.yaml gateway-routes.yaml sidecar.yaml
