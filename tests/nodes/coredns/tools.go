//go:build tools

// Package tools names the program that the tests build from the pinned CoreDNS.
package tools

import _ "github.com/coredns/coredns"
