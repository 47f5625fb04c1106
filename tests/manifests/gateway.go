// Prints what Envoy Gateway makes of a set of files: the listeners that have the external processor, their route
// configurations, the clusters and endpoints, and of the pod in which the proxy runs what the socket depends on. It fails when Envoy Gateway does not accept
// one of the resources.
//
//	gateway-translate FILE...
//
// It is the translator that `egctl x translate` calls, which checks the resources against their CRDs as well. The reader of
// that command drops annotations, the controller does not, so they are put back here.
//
// Built inside Envoy Gateway's module, because the translator is internal to it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gwapiv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	egv1a1 "github.com/envoyproxy/gateway/api/v1alpha1"
	"github.com/envoyproxy/gateway/internal/cmd/egctl"
	"github.com/envoyproxy/gateway/internal/gatewayapi"
	"github.com/envoyproxy/gateway/internal/gatewayapi/resource"
	"github.com/envoyproxy/gateway/internal/infrastructure/kubernetes/proxy"
	"github.com/envoyproxy/gateway/internal/ir"
	"github.com/envoyproxy/gateway/internal/logging"
)

const (
	namespace = "envoy-gateway-system"
	domain    = "cluster.local"
	processor = "envoy.filters.http.ext_proc"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: gateway-translate FILE..."))
	}
	var files []string
	for _, file := range os.Args[1:] {
		text, err := os.ReadFile(file)
		if err != nil {
			fail(err)
		}
		files = append(files, string(text))
	}
	out, err := run(strings.Join(files, "\n---\n"))
	if err != nil {
		fail(err)
	}
	os.Stdout.Write(out)
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "gateway-translate: %v\n", err)
	os.Exit(1)
}

func run(text string) ([]byte, error) {
	resources, err := resource.LoadResourcesFromYAMLBytes([]byte(text), false, nil)
	if err != nil {
		return nil, err
	}
	if err := restoreAnnotations(resources, text); err != nil {
		return nil, err
	}
	for _, service := range resources.Services {
		service.Spec.ClusterIP = "10.96.0.1"
	}
	// Every installation has its proxies' certificate.
	resources.Secrets = append(resources.Secrets, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "envoy"},
	})
	pod, err := infrastructure(resources)
	if err != nil {
		return nil, err
	}
	options := &egctl.TranslationOptions{EndpointRoutingDisabled: true, BackendEnabled: true}
	xds, err := egctl.TranslateGatewayAPIToXds(namespace, domain, "all", resources, options)
	if err != nil {
		return nil, err
	}
	out := &bytes.Buffer{}
	for _, section := range append(configuration(xds), part{"pod", pod}) {
		text, err := yaml.Marshal(map[string]any{section.name: section.value})
		if err != nil {
			return nil, err
		}
		out.Write(text)
	}
	return out.Bytes(), nil
}

// restoreAnnotations gives the routes the annotations that the text gives them.
func restoreAnnotations(resources *resource.Resources, text string) error {
	for _, document := range strings.Split(text, "\n---\n") {
		var object metav1.PartialObjectMetadata
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			return err
		}
		for _, route := range resources.HTTPRoutes {
			if object.Kind == route.Kind && object.Namespace == route.Namespace && object.Name == route.Name {
				route.Annotations = object.Annotations
			}
		}
	}
	return nil
}

// infrastructure is the pod that runs the proxy, once every resource is accepted.
func infrastructure(resources *resource.Resources) (any, error) {
	translator := &gatewayapi.Translator{
		GatewayControllerName:   string(resources.GatewayClass.Spec.ControllerName),
		GatewayClassName:        gwapiv1.ObjectName(resources.GatewayClass.Name),
		ControllerNamespace:     namespace,
		EndpointRoutingDisabled: true,
		BackendEnabled:          true,
		Logger:                  logging.DefaultLogger(io.Discard, egv1a1.LogLevelInfo),
	}
	result, err := translator.Translate(context.Background(), resources)
	if err != nil {
		return nil, err
	}
	status, err := json.Marshal(result.Resources)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(status, &tree); err != nil {
		return nil, err
	}
	if refused := refusals(tree); len(refused) > 0 {
		return nil, fmt.Errorf("not accepted: %s", strings.Join(refused, "; "))
	}
	for _, infra := range result.InfraIR {
		render, err := proxy.NewResourceRender(context.Background(), provider{}, infra)
		if err != nil {
			return nil, err
		}
		deployment, err := render.Deployment()
		if err != nil {
			return nil, err
		}
		return essence(deployment.Spec.Template.Spec), nil
	}
	return nil, fmt.Errorf("there is no Gateway")
}

// essence is what the sharing of the socket depends on.
func essence(pod corev1.PodSpec) corev1.PodSpec {
	kept := corev1.PodSpec{
		SecurityContext: pod.SecurityContext,
		InitContainers:  pod.InitContainers,
		Volumes:         pod.Volumes,
	}
	for _, container := range pod.Containers {
		if container.Name == "envoy" {
			kept.Containers = append(kept.Containers, corev1.Container{
				Name:            container.Name,
				Image:           container.Image,
				SecurityContext: container.SecurityContext,
				VolumeMounts:    container.VolumeMounts,
			})
		}
	}
	return kept
}

// refusals are the messages of all conditions that are false.
func refusals(tree any) []string {
	var found []string
	switch value := tree.(type) {
	case map[string]any:
		if value["status"] == "False" && value["type"] != nil {
			found = append(found, fmt.Sprintf("%v: %v", value["type"], value["message"]))
		}
		for _, inner := range value {
			found = append(found, refusals(inner)...)
		}
	case []any:
		for _, inner := range value {
			found = append(found, refusals(inner)...)
		}
	}
	return found
}

type part struct {
	name  string
	value any
}

// configuration takes out of the dump what concerns us.
func configuration(dump map[string]any) []part {
	parts := []part{
		{"listeners", find(dump, "type.googleapis.com/envoy.config.listener.v3.Listener", processor)},
		{"routes", find(dump, "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "")},
		{"clusters", find(dump, "type.googleapis.com/envoy.config.cluster.v3.Cluster", "")},
		{"endpoints", find(dump, "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "")},
	}
	return parts
}

// find collects all messages of a type that mention a text.
func find(tree any, kind, mentions string) []any {
	var found []any
	switch value := tree.(type) {
	case map[string]any:
		if value["@type"] == kind {
			if text, err := json.Marshal(value); err == nil && strings.Contains(string(text), mentions) {
				found = append(found, value)
			}
			return found
		}
		for _, inner := range value {
			found = append(found, find(inner, kind, mentions)...)
		}
	case []any:
		for _, inner := range value {
			found = append(found, find(inner, kind, mentions)...)
		}
	case []map[string]any:
		for _, inner := range value {
			found = append(found, find(inner, kind, mentions)...)
		}
	}
	return found
}

// provider is an Envoy Gateway with its default settings.
type provider struct{}

func (provider) GetControllerNamespace() string        { return namespace }
func (provider) GetDNSDomain() string                  { return domain }
func (provider) GetResourceNamespace(*ir.Infra) string { return namespace }
func (provider) GetEnvoyGateway() *egv1a1.EnvoyGateway { return egv1a1.DefaultEnvoyGateway() }
func (provider) GetOwnerReferenceUID(context.Context, *ir.Infra) (map[string]types.UID, error) {
	return nil, nil
}
