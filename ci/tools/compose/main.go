// compose prints what `docker compose config` would, as JSON: the file read, interpolated, and checked against Compose's own
// rules by its own library, with the services of the active profiles.
//
//	compose [--profile NAME]… [compose.yaml]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/sirupsen/logrus"
)

type names []string

func (list *names) String() string { return fmt.Sprint(*list) }

func (list *names) Set(name string) error {
	*list = append(*list, name)
	return nil
}

// complaints makes an error of what the library only warns of: a variable without a value, an attribute that is obsolete.
type complaints struct{ found []string }

func (hook *complaints) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel}
}

func (hook *complaints) Fire(entry *logrus.Entry) error {
	hook.found = append(hook.found, entry.Message)
	return nil
}

func config(files []string, profiles []string) ([]byte, error) {
	hook := &complaints{}
	logrus.SetOutput(os.Stderr)
	logrus.AddHook(hook)
	// The order is that of docker compose: .env may name the profiles, and --profile replaces them.
	options, err := cli.NewProjectOptions(files,
		cli.WithOsEnv,
		cli.WithConfigFileEnv,
		cli.WithDefaultConfigPath,
		cli.WithEnvFiles(),
		cli.WithDotEnv,
		cli.WithDefaultProfiles(profiles...),
		cli.WithName("clothing-classifier"),
	)
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	if len(hook.found) > 0 {
		return nil, fmt.Errorf("%v", hook.found)
	}
	return project.MarshalJSON()
}

func main() {
	var profiles names
	flag.Var(&profiles, "profile", "a profile whose services are wanted; several times for several")
	flag.Parse()
	text, err := config(flag.Args(), profiles)
	if err != nil {
		fmt.Fprintln(os.Stderr, "compose:", err)
		os.Exit(1)
	}
	fmt.Println(string(text))
}
