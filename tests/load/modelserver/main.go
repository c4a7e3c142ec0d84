// Command modelserver speaks TensorFlow Serving's PredictionService and answers at once, so that a benchmark measures
// what asks it. The ten scores of a photo are ten values of its tensor, spread over all of it: a wrong pixel shows.
//
//	modelserver -listen 127.0.0.1:0 -input float32 -size 299 [-channels 1] [-layout nchw] [-delay 200ms] [-threads 8]
//
// With -threads N it refuses calls as TensorFlow Serving does with grpc_max_threads N: N-1 run, the next one is answered
// RESOURCE_EXHAUSTED at once, with no text, metadata included (thread_manager.cc of gRPC's synchronous server). A call whose
// client has left keeps its thread until it ends.
//
// It prints the address that it listens on. Requests are walked where they lie, in the pieces that came from the
// socket: nothing is copied and no message is built.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// rawCodec hands messages over as the bytes that they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	data.Ref()
	*v.(*mem.BufferSlice) = data
	return nil
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("modelserver: ")
	listen := flag.String("listen", "127.0.0.1:0", "`address` to listen on; port 0 takes a free one")
	input := flag.String("input", "float32", "what the model takes: float32, uint8 or string")
	size := flag.Int("size", 299, "`pixels`: the width and the height that the signature asks for")
	channels := flag.Int("channels", 3, "how many channels the signature asks for: 3, or 1 of a grey input")
	layout := flag.String("layout", "nhwc", "where the signature has the channels: last (nhwc) or first (nchw)")
	delay := flag.Duration("delay", 0, "how long a Predict takes")
	threads := flag.Int("threads", 0, "the server's threads; 0: as many as there are calls")
	flag.Parse()
	if *threads < 0 || *threads == 1 {
		log.Fatalf("-threads %d: one thread waits for calls, so that fewer than 2 answer none", *threads)
	}
	model, err := newModel(*input, *size, *channels, *layout)
	if err != nil {
		log.Fatal(err)
	}
	model.delay = *delay
	if *threads > 0 {
		model.free = make(chan struct{}, *threads-1)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatalf("%v: choose another address with -listen", err)
	}
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.UnknownServiceHandler(model.serve),
		// Windows and buffers for tensors of a megabyte: the defaults, 64 KiB, wait for the client sixteen times.
		grpc.InitialWindowSize(8<<20),
		grpc.InitialConnWindowSize(64<<20),
		grpc.ReadBufferSize(256<<10),
		grpc.MaxRecvMsgSize(1<<30),
		grpc.MaxConcurrentStreams(1000),
	)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-stop
		server.Stop()
	}()
	fmt.Println(listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}

// serve answers any call of any service: which one it is stands in the method's name.
func (m *model) serve(_ any, stream grpc.ServerStream) error {
	if m.free != nil {
		select {
		case m.free <- struct{}{}:
			defer func() { <-m.free }()
		default:
			return status.Error(codes.ResourceExhausted, "")
		}
	}
	method, _ := grpc.MethodFromServerStream(stream)
	var request mem.BufferSlice
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	defer request.Free()
	var answer []byte
	var err error
	switch method {
	case "/tensorflow.serving.PredictionService/Predict":
		time.Sleep(m.delay)
		answer, err = m.predict(request)
	case "/tensorflow.serving.PredictionService/GetModelMetadata":
		answer, err = m.metadata(request)
	default:
		return status.Errorf(codes.Unimplemented, "%s is not served here", method)
	}
	if err == io.ErrUnexpectedEOF {
		err = status.Error(codes.InvalidArgument, "the message is cut off")
	}
	if err != nil {
		return err
	}
	return stream.SendMsg(&answer)
}
