// SPDX-License-Identifier: Apache-2.0
// A vCenter for tests: govmomi's simulator behind HTTPS. Prints its address and serves
// until its standard input ends, so that it does not outlive the tests.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	cert := flag.String("cert", "", "certificate")
	key := flag.String("key", "", "its key")
	user := flag.String("user", "", "who may log in")
	password := flag.String("password", "", "with what")
	idle := flag.Duration("idle", 0, "a session lasts so long without a call")
	machines := flag.Int("machines", 2, "virtual machines in the pool")
	flag.Parse()

	model := simulator.VPX()
	model.Host = 0
	model.ClusterHost = 1
	model.Machine = *machines
	model.Portgroup = 2
	model.Datastore = 2
	defer model.Remove()
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	if *idle > 0 {
		simulator.SessionIdleTimeout = *idle
	}
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		log.Fatal(err)
	}
	service := model.Service
	service.RegisterEndpoints = true
	service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(*user, *password)}
	server := service.NewServer()
	fmt.Println(server.URL.Host)
	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Close()
}
