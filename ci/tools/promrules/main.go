// promrules checks alerting rules with Prometheus's own parser, and says which alerts fire for series that are given: what
// `promtool check rules` and `promtool test rules` do, without the clients of a dozen clouds that promtool is built with.
//
//	promrules RULES.yaml < QUESTION.json
//
// QUESTION: {"load": "load 1m\n  up{job=\"a\"} 1x60", "interval": "1m", "at": ["30m", "1h"]}; an empty one only checks the rules.
// Answer, as JSON: for each time the alerts that fire, each with its labels and annotations.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

type question struct {
	Load     string           `json:"load"`
	Interval model.Duration   `json:"interval"`
	At       []model.Duration `json:"at"`
}

type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(file string) error {
	if _, errs := rulefmt.ParseFile(file, false); len(errs) > 0 {
		return fmt.Errorf("%s: %v", file, errs)
	}
	asked := question{Interval: model.Duration(time.Minute)}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return fmt.Errorf("the question: %w", err)
	}
	answer := map[string][]alert{}
	if len(asked.At) > 0 {
		if err := evaluate(file, asked, answer); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

func evaluate(file string, asked question, answer map[string][]alert) error {
	loader, err := promqltest.NewLazyLoader(asked.Load, promqltest.LazyLoaderOpts{})
	if err != nil {
		return fmt.Errorf("the series: %w", err)
	}
	defer loader.Close()
	manager := rules.NewManager(&rules.ManagerOptions{
		QueryFunc:  rules.EngineQueryFunc(loader.QueryEngine(), loader.Storage()),
		Appendable: loader.Storage(),
		Context:    context.Background(),
		NotifyFunc: func(context.Context, string, ...*rules.Alert) {},
		Logger:     slog.New(slog.DiscardHandler),
	})
	groups, errs := manager.LoadGroups(time.Duration(asked.Interval), labels.EmptyLabels(), "", nil, false, file)
	if len(errs) > 0 {
		return fmt.Errorf("%s: %v", file, errs)
	}
	wanted := map[time.Duration]bool{}
	last := time.Duration(0)
	for _, at := range asked.At {
		wanted[time.Duration(at)] = true
		last = max(last, time.Duration(at))
	}
	for since := time.Duration(0); since <= last; since += time.Duration(asked.Interval) {
		now := time.Unix(0, 0).UTC().Add(since)
		firing := []alert{}
		var failed error
		loader.WithSamplesTill(now, func(err error) {
			failed = err
			for _, group := range groups {
				group.Eval(loader.Context(), now)
				for _, rule := range group.Rules() {
					if rule.LastError() != nil {
						failed = fmt.Errorf("%s at %s: %w", rule.Name(), since, rule.LastError())
					}
					alerting, ok := rule.(*rules.AlertingRule)
					if !ok {
						continue
					}
					for _, active := range alerting.ActiveAlerts() {
						if active.State == rules.StateFiring {
							firing = append(firing, alert{active.Labels.Map(), active.Annotations.Map()})
						}
					}
				}
			}
		})
		if failed != nil {
			return failed
		}
		if wanted[since] {
			answer[model.Duration(since).String()] = firing
		}
	}
	return nil
}
