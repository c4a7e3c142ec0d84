package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	policyChain = "NETWORK-POLICY"
	allowed     = "0x100000/0x100000" // the packet mark of what some rule allows
)

// newNetworkPolicyCommand enforces NetworkPolicies on this node with iptables, looking at the cluster once a second.
func newNetworkPolicyCommand() *cobra.Command {
	var kubeconfig string
	command := &cobra.Command{Use: "network-policy", RunE: func(command *cobra.Command, _ []string) error {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		for _, hook := range []string{"FORWARD", "INPUT"} {
			script := fmt.Sprintf("iptables -w -N %[1]s 2>/dev/null; iptables -w -C %[2]s -j %[1]s 2>/dev/null || iptables -w -I %[2]s -j %[1]s", policyChain, hook)
			if output, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
				return fmt.Errorf("iptables: %w: %s", err, output)
			}
		}
		last := ""
		for {
			rules, err := policyRules(command.Context(), client)
			if err == nil && rules != last {
				restore := exec.Command("iptables-restore", "--noflush", "--wait")
				restore.Stdin = strings.NewReader(rules)
				var output []byte
				if output, err = restore.CombinedOutput(); err != nil {
					err = fmt.Errorf("iptables-restore: %w: %s\n%s", err, output, rules)
				}
				last = rules
			}
			if err != nil {
				fmt.Println(err)
			}
			time.Sleep(time.Second)
		}
	}}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file")
	return command
}

type policyWorld struct {
	pods       []corev1.Pod
	namespaces map[string]labels.Set
	chains     []string
	rules      []string
}

func (w *policyWorld) chain(parts ...string) string {
	hash := fnv.New32a()
	hash.Write([]byte(strings.Join(parts, "/")))
	name := fmt.Sprintf("NP-%08x", hash.Sum32())
	w.chains = append(w.chains, name)
	return name
}

func (w *policyWorld) add(format string, arguments ...any) {
	w.rules = append(w.rules, "-A "+fmt.Sprintf(format, arguments...))
}

func policyRules(ctx context.Context, client kubernetes.Interface) (string, error) {
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	policies, err := client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	w := &policyWorld{namespaces: map[string]labels.Set{}}
	for _, namespace := range namespaces.Items {
		w.namespaces[namespace.Name] = namespace.Labels
	}
	for _, pod := range pods.Items {
		if pod.Status.PodIP != "" && !pod.Spec.HostNetwork && pod.Status.Phase == corev1.PodRunning {
			w.pods = append(w.pods, pod)
		}
	}
	w.add("%s -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN", policyChain)
	for _, direction := range []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress} {
		for _, pod := range w.pods {
			w.isolate(pod, direction, policies.Items)
		}
	}
	lines := []string{"*filter", ":" + policyChain + " - [0:0]"}
	for _, chain := range w.chains {
		lines = append(lines, ":"+chain+" - [0:0]")
	}
	return strings.Join(append(append(lines, w.rules...), "COMMIT", ""), "\n"), nil
}

// isolate writes the chain of one pod in one direction, if any policy selects it there.
func (w *policyWorld) isolate(pod corev1.Pod, direction networkingv1.PolicyType, policies []networkingv1.NetworkPolicy) {
	chain, self := "", "-s"
	if direction == networkingv1.PolicyTypeIngress {
		self = "-d"
	}
	for _, policy := range policies {
		if policy.Namespace != pod.Namespace || !has(policy.Spec.PolicyTypes, direction) || !selects(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		if chain == "" {
			chain = w.chain(string(direction), pod.Namespace, pod.Name)
			w.add("%s %s %s/32 -j %s", policyChain, self, pod.Status.PodIP, chain)
			w.add("%s -j MARK --set-xmark 0x0/0x100000", chain)
		}
		if direction == networkingv1.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				w.allow(chain, "-s", policy.Namespace, rule.From, rule.Ports, &pod)
			}
		} else {
			for _, rule := range policy.Spec.Egress {
				w.allow(chain, "-d", policy.Namespace, rule.To, rule.Ports, nil)
			}
		}
	}
	if chain != "" {
		w.add("%s -m mark --mark %s -j RETURN", chain, allowed)
		w.add("%s -j REJECT --reject-with icmp-port-unreachable", chain)
	}
}

// allow marks what one rule lets pass: each of its peers, on each of its ports.
func (w *policyWorld) allow(chain, peerFlag, namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, target *corev1.Pod) {
	if len(peers) == 0 {
		w.allowPorts(chain, "", ports, target)
	}
	for _, peer := range peers {
		if block := peer.IPBlock; block != nil {
			within := w.chain(chain, fmt.Sprint(len(w.chains)))
			w.add("%s %s %s -j %s", chain, peerFlag, block.CIDR, within)
			for _, except := range block.Except {
				w.add("%s %s %s -j RETURN", within, peerFlag, except)
			}
			w.allowPorts(within, "", ports, target)
			continue
		}
		for _, pod := range w.pods {
			inNamespace := peer.NamespaceSelector == nil && pod.Namespace == namespace ||
				peer.NamespaceSelector != nil && selects(peer.NamespaceSelector, w.namespaces[pod.Namespace])
			if !inNamespace || peer.PodSelector != nil && !selects(peer.PodSelector, pod.Labels) {
				continue
			}
			named := target
			if named == nil {
				named = &pod
			}
			w.allowPorts(chain, fmt.Sprintf("%s %s/32", peerFlag, pod.Status.PodIP), ports, named)
		}
	}
}

func (w *policyWorld) allowPorts(chain, match string, ports []networkingv1.NetworkPolicyPort, target *corev1.Pod) {
	if len(ports) == 0 {
		w.add("%s %s -j MARK --set-xmark %s", chain, match, allowed)
	}
	for _, port := range ports {
		protocol := "tcp"
		if port.Protocol != nil {
			protocol = strings.ToLower(string(*port.Protocol))
		}
		number := ""
		if port.Port != nil {
			number = " --dport " + portNumber(*port.Port, target)
			if port.EndPort != nil {
				number += fmt.Sprintf(":%d", *port.EndPort)
			}
		}
		w.add("%s %s -p %s%s -j MARK --set-xmark %s", chain, match, protocol, number, allowed)
	}
}

func portNumber(port intstr.IntOrString, pod *corev1.Pod) string {
	if port.Type == intstr.Int {
		return port.String()
	}
	if pod != nil {
		for _, container := range pod.Spec.Containers {
			for _, candidate := range container.Ports {
				if candidate.Name == port.StrVal {
					return fmt.Sprint(candidate.ContainerPort)
				}
			}
		}
	}
	return "0"
}

func has(types []networkingv1.PolicyType, wanted networkingv1.PolicyType) bool {
	for _, candidate := range types {
		if candidate == wanted {
			return true
		}
	}
	return false
}

func selects(selector *metav1.LabelSelector, set labels.Set) bool {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(set)
}
