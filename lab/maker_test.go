package lab

import (
	"context"
	"fmt"
	"os"
)

// makerCommand makes this test binary a process that makes a lab and then
// waits to be killed.
const makerCommand = "lab-test-maker"

func makerMain(args []string) int {
	if _, err := Up(context.Background(), Options{Name: args[0], Dir: args[1], Nodes: 2, Progress: os.Stderr}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("up")
	select {}
}
