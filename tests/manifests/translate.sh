#!/usr/bin/env bash
# Writes the translated.yaml files: what Istio and Envoy Gateway make of the files beside them. Started by `make translated`.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
bin=$(dirname "$(tests/tools.sh path translators)")

# translated OUT WHO COMMAND POD FILE...: the output of a translator, with what it was made of.
translated() {
  local out=$1 who=$2 command=$3 pod=$4 made
  shift 4
  made=$("$bin/$command" ${pod:+"$pod"} "$@")
  {
    echo "# What $who makes of $(basename -a "$@" | paste -sd' '). Do not edit: make translated"
    # The tests compare this with the files. Comments and empty lines do not count.
    echo "# sources: $(cat "$@" | grep -vE '^[[:space:]]*(#|$)' | sha256sum | cut -d' ' -f1)"
    printf '%s\n' "$made"
  } >"$out"
}

protected=../../tests/manifests/protected
cd envoy/gateway
translated translated.yaml "Envoy Gateway" gateway-translate "" platform.yaml routes.yaml
translated "$protected/translated-gateway.yaml" "Envoy Gateway" gateway-translate "" platform.yaml routes.yaml \
  "$protected/gateway.yaml"
cd ../istio
translated translated-sidecar.yaml Istio istio-translate shop/imgproxy sidecar.yaml
translated translated-gateway.yaml Istio istio-translate gateways/images-gateway gateway.yaml gateway-routes.yaml sidecar.yaml
translated "$protected/translated-istio-sidecar.yaml" Istio istio-translate shop/imgproxy sidecar.yaml \
  "$protected/istio-sidecar.yaml"
translated "$protected/translated-istio-gateway.yaml" Istio istio-translate gateways/images-gateway gateway.yaml \
  gateway-routes.yaml sidecar.yaml "$protected/istio-gateway.yaml"
