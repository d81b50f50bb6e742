//go:build tools

// Package suite names the server that the suite's pods run.
package suite

import _ "sigs.k8s.io/gateway-api/conformance/echo-basic"
