package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/apiserver"
)

// openapiCommand needs no agent: the description is made from the Go types
// that this binary serves.
func openapiCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "openapi",
		Short: "Print the description of the REST API (OpenAPI 3.1)",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			text, err := apiserver.New(apiserver.Config{
				Version: versionText(), Control: func() bool { return true }, Log: slog.New(slog.DiscardHandler),
			}).OpenAPI()
			if err != nil {
				return err
			}
			switch output {
			case "yaml":
			case "json":
				if text, err = yaml.YAMLToJSON(text); err != nil {
					return err
				}
				text = append(text, '\n')
			default:
				return &api.Error{Kind: api.Invalid, Op: "print", Object: output, Reason: "no such output", Next: "use yaml or json"}
			}
			_, err = fmt.Fprint(c.OutOrStdout(), string(text))
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	complete(c, "output", cobra.FixedCompletions([]string{"yaml", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}
