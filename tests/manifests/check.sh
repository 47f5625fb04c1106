#!/usr/bin/env bash
# Checks the files for Istio, Envoy Gateway, Kubernetes and Helm against published schemas, and that envoy/kubernetes is what the
# chart makes of its values. Started by `make manifests`.
#
#   tests/manifests/check.sh            checks
#   tests/manifests/check.sh --write    writes envoy/kubernetes anew first
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
tool=$(dirname "$(dirname "$(tests/tools.sh path manifests)")")
bin=$tool/bin
schemas=$tool/schemas
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

chart=envoy/helm
fail() { echo "manifests: $*" >&2; exit 1; }

# valid FILE...: every resource is one that Kubernetes or its CRD allows, with no field that is unknown.
valid() {
  local version
  for version in "$schemas"/v*; do
    "$bin/kubeconform" -strict -summary \
      -schema-location "$version/{{ .ResourceKind }}{{ .KindSuffix }}.json" \
      -schema-location "$schemas/crds/{{ .Group }}_{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json" \
      "$@" || fail "not valid with Kubernetes $(basename "$version")"
  done
}

# rendered OUT TEMPLATE...: what the chart makes of envoy/kubernetes/values.yaml.
rendered() {
  local out=$1 show=()
  shift
  for template in "$@"; do show+=(--show-only "templates/$template.yaml"); done
  {
    echo "# Made of the chart in ../helm and of values.yaml; README.md says how."
    "$bin/helm" template images "$chart" --values envoy/kubernetes/values.yaml "${show[@]}"
  } >"$out"
}

"$bin/helm" lint --strict --quiet "$chart"

rendered "$scratch/images.yaml" configmap deployment service networkpolicy
rendered "$scratch/podmonitor.yaml" podmonitor
for file in images podmonitor; do
  [ "${1:-}" != --write ] || cp "$scratch/$file.yaml" "envoy/kubernetes/$file.yaml"
  diff -u "envoy/kubernetes/$file.yaml" "$scratch/$file.yaml" ||
    fail "envoy/kubernetes/$file.yaml is not what the chart makes; run: tests/manifests/check.sh --write"
done

# Other values, as a user might have them.
for values in "$here"/values/*.yaml; do
  "$bin/helm" template other "$chart" --values "$values" >"$scratch/$(basename "$values")"
done
# shellcheck disable=SC2016
sed -n '/^```yaml$/,/^```$/{/^```/!p}' "$chart/README.md" >"$scratch/values"
"$bin/helm" template images "$chart" --values "$scratch/values" --set image.afterimage=REGISTRY/afterimage:0.1.0 \
  >"$scratch/readme.yaml"
grep -q 'value: "thumbs"' "$scratch/readme.yaml" || fail "the values in $chart/README.md name no second policy"
for values in "$here"/refused/*.yaml; do
  if "$bin/helm" template other "$chart" --values "$values" >/dev/null 2>"$scratch/refused"; then
    fail "the chart takes $values"
  fi
  expected=$(sed -n 's/^# says: //p' "$values")
  grep -qF -- "$expected" "$scratch/refused" || { cat "$scratch/refused"; fail "$values is not refused with: $expected"; }
done

valid envoy/istio/{sidecar,gateway,gateway-routes}.yaml envoy/gateway/{platform,routes}.yaml \
  envoy/kubernetes/{images,podmonitor}.yaml "$scratch"/*.yaml

# A validator that lets everything pass would not be noticed above.
broken() {
  sed "$2" "$1" >"$scratch/broken.yaml"
  ! cmp -s "$1" "$scratch/broken.yaml" || fail "$2 changes nothing in $1"
  if (valid "$scratch/broken.yaml") >/dev/null 2>&1; then fail "$1 is valid with $2"; fi
}
broken envoy/gateway/platform.yaml 's/failOpen: true/failOpn: true/'
broken envoy/gateway/platform.yaml 's/messageTimeout: 3s/messageTimeout: 3/'
broken envoy/istio/gateway.yaml 's/operation: MERGE/operation: JOIN/'
broken envoy/kubernetes/images.yaml 's/runAsUser: 65532/runAsUser: nobody/'
broken envoy/kubernetes/podmonitor.yaml 's/interval: 30s/intervall: 30s/'
echo "manifests: ok"
