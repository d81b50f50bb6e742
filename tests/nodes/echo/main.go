// echo answers every HTTP request with who it is and what it saw, as JSON.
//
// PORT: where it listens (8080).  MESSAGE: what it says besides.  After SIGTERM it answers for
// two seconds more, until the last proxy has heard that it goes.
package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	pod, _ := os.Hostname()
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	answer := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"pod": pod, "message": os.Getenv("MESSAGE"), "path": r.URL.Path,
			"host": r.Host, "from": r.RemoteAddr,
		})
	}
	server := &http.Server{Addr: ":" + port, Handler: http.HandlerFunc(answer)}
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	go func() {
		if err := server.ListenAndServe(); err != http.ErrServerClosed {
			panic(err)
		}
	}()
	<-ended.Done()
	time.Sleep(2 * time.Second)
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	server.Shutdown(limited)
}
