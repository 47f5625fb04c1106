// Prints what Istio's control plane makes of a set of files for the pods of one Deployment in them: the filter chains that have
// the external processor, the route configurations that they name, and the clusters behind those routes. It is Istio's own code,
// the part that builds configuration for proxies, on objects held in memory instead of a cluster's.
//
//	istio-translate NAMESPACE/DEPLOYMENT FILE...
//
// Of the pod, after Istio has put its proxy into it, it prints what the sharing of the socket depends on.
//
// Built inside Istio's module, so that its dependencies are the ones it was released with.
package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"istio.io/istio/operator/pkg/render"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
	injection "istio.io/istio/pkg/kube/inject"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
)

const processor = "envoy.filters.http.ext_proc"

// input is what the files hold: objects of Kubernetes, and Istio's own resources as text.
type input struct {
	objects     []runtime.Object
	deployments []*appsv1.Deployment
	istio       []string
}

func main() {
	if len(os.Args) < 3 {
		fail("usage: istio-translate NAMESPACE/DEPLOYMENT FILE...")
	}
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.NoneLevel)
	}
	in := &input{}
	for _, file := range os.Args[2:] {
		if err := in.read(file); err != nil {
			fail("%s: %v", file, err)
		}
	}
	pod, err := in.pod(os.Args[1])
	if err != nil {
		fail("%v", err)
	}
	injected, err := inject(pod)
	if err != nil {
		fail("%v", err)
	}
	var out []byte
	err = test.Wrap(func(t test.Failer) {
		server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
			KubernetesObjects: append(in.objects, pod),
			ConfigString:      strings.Join(in.istio, "\n---\n"),
		})
		out = translate(t, server, pod)
	})
	if err != nil {
		fail("%v", err)
	}
	os.Stdout.Write(out)
	os.Stdout.Write(injected)
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "istio-translate: "+format+"\n", args...)
	os.Exit(1)
}

func (in *input) read(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, document := range strings.Split(string(text), "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			return err
		}
		switch {
		case kind.Kind == "Service":
			service := &corev1.Service{}
			if err := yaml.UnmarshalStrict([]byte(document), service); err != nil {
				return err
			}
			// What the API server fills in.
			service.Spec.ClusterIP = "10.96.0.1"
			for i := range service.Spec.Ports {
				port := &service.Spec.Ports[i]
				port.Protocol = corev1.ProtocolTCP
				if port.TargetPort == (intstr.IntOrString{}) {
					port.TargetPort = intstr.FromInt32(port.Port)
				}
			}
			in.objects = append(in.objects, service)
		case kind.Kind == "Deployment":
			deployment := &appsv1.Deployment{}
			if err := yaml.UnmarshalStrict([]byte(document), deployment); err != nil {
				return err
			}
			in.deployments = append(in.deployments, deployment)
		case strings.Contains(kind.APIVersion, "istio.io/"):
			in.istio = append(in.istio, document)
		}
	}
	return nil
}

// pod is a pod of that Deployment as it runs.
func (in *input) pod(name string) (*corev1.Pod, error) {
	for _, d := range in.deployments {
		if d.Namespace+"/"+d.Name != name {
			continue
		}
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name:        d.Name + "-0",
				Namespace:   d.Namespace,
				Labels:      d.Spec.Template.Labels,
				Annotations: d.Spec.Template.Annotations,
			},
			Spec: d.Spec.Template.Spec,
			Status: corev1.PodStatus{
				Phase:      corev1.PodRunning,
				PodIP:      "10.0.0.1",
				PodIPs:     []corev1.PodIP{{IP: "10.0.0.1"}},
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			},
		}, nil
	}
	return nil, fmt.Errorf("no Deployment %s", name)
}

// inject is what Istio's webhook with the default settings makes of the pod.
func inject(pod *corev1.Pod) ([]byte, error) {
	sets, _, err := render.GenerateManifest(nil, []string{"profile=default"}, false, nil, nil)
	if err != nil {
		return nil, err
	}
	var config injection.Config
	var values injection.ValuesConfig
	for _, set := range sets {
		for _, object := range set.Manifests {
			if object.GetName() != "istio-sidecar-injector" || object.GetKind() != "ConfigMap" {
				continue
			}
			data, _, err := unstructured.NestedStringMap(object.Object, "data")
			if err != nil {
				return nil, err
			}
			if config, err = injection.UnmarshalConfig([]byte(data["config"])); err != nil {
				return nil, err
			}
			if values, err = injection.NewValuesConfig(data["values"]); err != nil {
				return nil, err
			}
		}
	}
	templates, err := injection.ParseTemplates(config.RawTemplates)
	if err != nil {
		return nil, err
	}
	bare := pod.DeepCopy()
	bare.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	warn := func(text string) { fmt.Fprintln(os.Stderr, text) }
	injected, err := injection.IntoObject(nil, templates, values, "default", mesh.DefaultMeshConfig(), bare, warn)
	if err != nil {
		return nil, err
	}
	whole := injected.(*corev1.Pod).Spec
	kept := corev1.PodSpec{SecurityContext: whole.SecurityContext, Volumes: whole.Volumes}
	for _, container := range slices.Concat(whole.InitContainers, whole.Containers) {
		kept.Containers = append(kept.Containers, corev1.Container{
			Name:            container.Name,
			SecurityContext: container.SecurityContext,
			VolumeMounts:    container.VolumeMounts,
		})
	}
	return yaml.Marshal(map[string]any{"pod": kept})
}

func translate(t test.Failer, server *xds.FakeDiscoveryServer, pod *corev1.Pod) []byte {
	proxy := &model.Proxy{
		Type:            model.SidecarProxy,
		ID:              pod.Name + "." + pod.Namespace,
		ConfigNamespace: pod.Namespace,
		Labels:          pod.Labels,
		IPAddresses:     []string{pod.Status.PodIP},
		Metadata: &model.NodeMetadata{
			Namespace:    pod.Namespace,
			Labels:       pod.Labels,
			IstioVersion: "1.31.0",
			ClusterID:    "Kubernetes",
		},
	}
	if pod.Annotations["inject.istio.io/templates"] == "gateway" {
		proxy.Type = model.Router
	}
	proxy = server.SetupProxy(proxy)

	var listeners []*listener.Listener
	for _, one := range server.Listeners(proxy) {
		one.FilterChains = slices.DeleteFunc(one.FilterChains, func(chain *listener.FilterChain) bool {
			return !strings.Contains(marshal(t, chain), processor)
		})
		if len(one.FilterChains) > 0 {
			one.DefaultFilterChain = nil
			listeners = append(listeners, one)
		}
	}
	routes := server.RoutesFromListeners(proxy, listeners)
	if len(listeners) == 0 {
		t.Fatal("no listener has " + processor)
	}
	out := &bytes.Buffer{}
	section(t, out, "listeners", listeners)
	section(t, out, "routes", routes)
	section(t, out, "clusters", clusters(t, server.Clusters(proxy), listeners, routes))
	return out.Bytes()
}

// clusters keeps those that listeners or routes lead to, and Afterimage's.
func clusters(t test.Failer, all []*cluster.Cluster, listeners []*listener.Listener, routes []*route.RouteConfiguration) []*cluster.Cluster {
	var named string
	for _, one := range listeners {
		named += marshal(t, one)
	}
	for _, one := range routes {
		named += marshal(t, one)
	}
	var kept []*cluster.Cluster
	for _, one := range all {
		quoted := `"` + one.Name + `"`
		if strings.Contains(named, `"cluster":`+quoted) || strings.Contains(named, `"clusterName":`+quoted) {
			kept = append(kept, one)
		}
	}
	return kept
}

func section[M proto.Message](t test.Failer, out *bytes.Buffer, name string, messages []M) {
	var items []string
	for _, message := range messages {
		items = append(items, marshal(t, message))
	}
	text, err := yaml.JSONToYAML([]byte(`{"` + name + `":[` + strings.Join(items, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
}

func marshal(t test.Failer, message proto.Message) string {
	text, err := protojson.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	// protojson puts spaces in or not, by chance.
	compact, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(compact)
}
