{{- /* Peers that photos come from: the internet without what the gateway refuses as well (clothing_gateway/fetch/policy.py; a test compares the lists), and
       the operator's own networks. */ -}}
{{- define "clothing-classifier.networkPolicy.photoPeers" -}}
{{- $fetch := .Values.gateway.fetch -}}
{{- $ipv6 := list -}}
{{- $ipv4 := list -}}
{{- range $fetch.deniedNetworks -}}
{{- if contains ":" . -}}{{- $ipv6 = append $ipv6 . -}}{{- else -}}{{- $ipv4 = append $ipv4 . -}}{{- end -}}
{{- end -}}
{{- if and (has "IPv4" .Values.networkPolicy.ipFamilies) (not (has "0.0.0.0/0" $ipv4)) }}
- ipBlock:
    cidr: 0.0.0.0/0
    except:
      - 0.0.0.0/8
      - 10.0.0.0/8
      - 100.64.0.0/10
      - 127.0.0.0/8
      - 161.26.0.0/16
      - 166.8.0.0/14
      - 169.254.0.0/16
      - 172.16.0.0/12
      - 192.0.0.0/24
      - 192.0.2.0/24
      - 192.31.196.0/24
      - 192.52.193.0/24
      - 192.88.99.0/24
      - 192.168.0.0/16
      - 192.175.48.0/24
      - 198.18.0.0/15
      - 198.51.100.0/24
      - 203.0.113.0/24
      - 224.0.0.0/4
      - 240.0.0.0/4
      - 168.63.129.16/32
      {{- range $ipv4 }}
      - {{ . }}
      {{- end }}
{{- end }}
{{- if and (has "IPv6" .Values.networkPolicy.ipFamilies) (not (has "::/0" $ipv6)) (not (has "2000::/3" $ipv6)) }}
- ipBlock:
    cidr: 2000::/3
    except:
      - 2001::/32
      - 2001::/23
      - 2001:db8::/32
      - 2002::/16
      - 2620:4f:8000::/48
      - 3fff::/20
      {{- /* A network outside of 2000::/3 is closed anyway, and the API server would refuse it here. */}}
      {{- range $ipv6 }}
      {{- if regexMatch "^[23][0-9A-Fa-f]{3}:" . }}
      - {{ . }}
      {{- end }}
      {{- end }}
{{- end }}
{{- range $fetch.allowedNetworks }}
- ipBlock:
    cidr: {{ . }}
{{- end }}
{{- end -}}
