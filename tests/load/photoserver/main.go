// Command photoserver serves the files of folders from memory, as http://ADDRESS/FILE, with connections kept alive.
//
//	photoserver -listen 127.0.0.1:0 [-delay 100ms] FOLDER…
//
// It prints the address that it listens on.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"mime"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("photoserver: ")
	listen := flag.String("listen", "127.0.0.1:0", "`address` to listen on; port 0 takes a free one")
	delay := flag.Duration("delay", 0, "how long each answer waits, as a slow host's would")
	flag.Parse()
	type photo struct {
		data         []byte
		length, kind []string
	}
	photos := map[string]photo{}
	for _, folder := range flag.Args() {
		files, err := os.ReadDir(folder)
		if err != nil {
			log.Fatal(err)
		}
		for _, file := range files {
			if file.IsDir() {
				continue
			}
			data, err := os.ReadFile(filepath.Join(folder, file.Name()))
			if err != nil {
				log.Fatal(err)
			}
			kind := mime.TypeByExtension(filepath.Ext(file.Name()))
			photos["/"+file.Name()] = photo{data, []string{strconv.Itoa(len(data))}, []string{kind}}
		}
	}
	if len(photos) == 0 {
		log.Fatalf("no files in %q", flag.Args())
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if *delay > 0 {
			time.Sleep(*delay)
		}
		found, there := photos[r.URL.Path]
		if !there {
			http.NotFound(w, r)
			return
		}
		header := w.Header()
		header["Content-Type"], header["Content-Length"] = found.kind, found.length
		w.Write(found.data)
	})}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatalf("%v: choose another address with -listen", err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-stop
		server.Close()
	}()
	fmt.Println(listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
