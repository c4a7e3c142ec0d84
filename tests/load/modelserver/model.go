package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// The course's names: the rebuilt gateway has them in its code.
const (
	modelName     = "clothing-model"
	inputName     = "input_8"
	outputName    = "dense_7"
	signatureName = "serving_default"
	scores        = 10
)

// DataType of tensorflow/core/framework/types.proto.
const (
	dtFloat  = 1
	dtUint8  = 4
	dtString = 7
)

type model struct {
	delay time.Duration
	free  chan struct{} // a place for each call that may run; nil: no limit
	dtype int
	photo []int // the shape of one photo, as in the signature; empty: a string
	width int   // bytes of a number
}

func newModel(input string, size, channels int, layout string) (*model, error) {
	var photo []int
	switch layout {
	case "nhwc":
		photo = []int{size, size, channels}
	case "nchw":
		photo = []int{channels, size, size}
	default:
		return nil, fmt.Errorf("-layout %q is none of nhwc, nchw", layout)
	}
	switch input {
	case "float32":
		return &model{dtype: dtFloat, photo: photo, width: 4}, nil
	case "uint8":
		return &model{dtype: dtUint8, photo: photo, width: 1}, nil
	case "string":
		return &model{dtype: dtString, width: 1}, nil
	}
	return nil, fmt.Errorf("-input %q is none of float32, uint8, string", input)
}

// spec is ModelSpec: what was asked for, and which version answers.
type spec struct {
	name    string
	version uint64
}

func (c *cursor) spec() (spec, error) {
	asked := spec{version: 1}
	err := c.fields(func(number protowire.Number, _ uint64) error {
		switch number {
		case 1: // name
			name, err := c.rest()
			asked.name = string(name)
			return err
		case 2: // version, an Int64Value
			return c.fields(func(number protowire.Number, value uint64) error {
				if number == 1 {
					asked.version = value
				}
				return nil
			})
		}
		return nil
	})
	return asked, err
}

func (s spec) check() error {
	if s.name != modelName {
		return status.Errorf(codes.NotFound, "Servable not found for request: Latest(%s)", s.name)
	}
	return nil
}

// predict answers a PredictRequest.
func (m *model) predict(request mem.BufferSlice) ([]byte, error) {
	asked := spec{version: 1}
	var values []float32
	c := newCursor(request)
	err := c.fields(func(number protowire.Number, _ uint64) (err error) {
		switch number {
		case 1: // model_spec
			asked, err = c.spec()
		case 2: // inputs, a map
			err = c.fields(func(number protowire.Number, _ uint64) error {
				switch number {
				case 1: // key
					name, err := c.rest()
					if err == nil && string(name) != inputName {
						return status.Errorf(codes.InvalidArgument, "input size does not match signature: Sent extra: {%s}. Missing but required: {%s}.", name, inputName)
					}
					return err
				case 2: // value
					values, err = m.tensor(c)
					return err
				}
				return nil
			})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := asked.check(); err != nil {
		return nil, err
	}
	if values == nil {
		return nil, status.Errorf(codes.InvalidArgument, "input size does not match signature: Missing but required: {%s}.", inputName)
	}
	return answer(asked, values), nil
}

// tensor reads the scores out of a TensorProto: ten values of each photo, at equal distances.
func (m *model) tensor(c *cursor) ([]float32, error) {
	var values []float32
	var shape []int
	dtype := 0
	err := c.fields(func(number protowire.Number, value uint64) error {
		switch number {
		case 1:
			dtype = int(value)
		case 2: // tensor_shape
			return c.fields(func(number protowire.Number, _ uint64) error {
				if number != 2 { // dim
					return nil
				}
				size := 0
				err := c.fields(func(number protowire.Number, value uint64) error {
					if number == 1 {
						size = int(value)
					}
					return nil
				})
				shape = append(shape, size)
				return err
			})
		case 4: // tensor_content; type and shape come before it
			bytes := m.width
			for _, side := range m.photo {
				bytes *= side
			}
			if len(shape) != 4 || !slices.Equal(shape[1:], m.photo) || c.left != shape[0]*bytes {
				return status.Errorf(codes.InvalidArgument, "%d bytes in a tensor of the shape %v", c.left, shape)
			}
			for range shape[0] {
				photo, err := m.spread(c, bytes)
				if err != nil {
					return err
				}
				values = append(values, photo...)
			}
		case 8: // string_val
			photo, err := m.spread(c, c.left)
			values = append(values, photo...)
			return err
		}
		return nil
	})
	if err == nil && dtype != m.dtype {
		err = status.Errorf(codes.InvalidArgument, "Expected dtype %d, got %d", m.dtype, dtype)
	}
	return values, err
}

// spread reads ten values of the next so many bytes, each in the middle of a tenth of them.
func (m *model) spread(c *cursor, bytes int) ([]float32, error) {
	photo := make([]float32, 0, scores)
	number := make([]byte, m.width)
	count, at := bytes/m.width, 0
	for i := range scores {
		index := (2*i + 1) * count / (2 * scores)
		if err := c.skip((index - at) * m.width); err != nil {
			return nil, err
		}
		if err := c.read(number); err != nil {
			return nil, err
		}
		at = index + 1
		if m.width == 4 {
			photo = append(photo, math.Float32frombits(binary.LittleEndian.Uint32(number)))
		} else {
			photo = append(photo, float32(number[0]))
		}
	}
	return photo, c.skip((count - at) * m.width)
}

func message(number protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
}

func integer(number protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), value)
}

func join(parts ...[]byte) (all []byte) {
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

func (s spec) marshal(signature bool) []byte {
	marshalled := join(message(1, []byte(s.name)), message(2, integer(1, s.version)))
	if signature {
		marshalled = join(marshalled, message(3, []byte(signatureName)))
	}
	return marshalled
}

func shapeOf(sizes ...int) (shape []byte) {
	for _, size := range sizes {
		shape = append(shape, message(2, integer(1, uint64(size)))...)
	}
	return shape
}

// answer is a PredictResponse; the scores stand in float_val, where TensorFlow Serving puts them.
func answer(asked spec, values []float32) []byte {
	packed := make([]byte, 0, 4*len(values))
	for _, value := range values {
		packed = binary.LittleEndian.AppendUint32(packed, math.Float32bits(value))
	}
	tensor := join(integer(1, dtFloat), message(2, shapeOf(len(values)/scores, scores)), message(5, packed))
	return join(message(1, join(message(1, []byte(outputName)), message(2, tensor))), message(2, asked.marshal(true)))
}

// metadata answers GetModelMetadata with the signature.
func (m *model) metadata(request mem.BufferSlice) ([]byte, error) {
	asked := spec{version: 1}
	c := newCursor(request)
	err := c.fields(func(number protowire.Number, _ uint64) (err error) {
		if number == 1 {
			asked, err = c.spec()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := asked.check(); err != nil {
		return nil, err
	}
	input := shapeOf(append([]int{-1}, m.photo...)...)
	info := func(name string, dtype int, shape []byte) []byte {
		return join(message(1, []byte(name)), message(2, join(message(1, []byte(name+":0")), integer(2, uint64(dtype)), message(3, shape))))
	}
	signature := join(
		message(1, info(inputName, m.dtype, input)),
		message(2, info(outputName, dtFloat, shapeOf(-1, scores))),
		message(3, []byte("tensorflow/serving/predict")),
	)
	signatures := message(1, join(message(1, []byte(signatureName)), message(2, signature)))
	packed := join(message(1, []byte("type.googleapis.com/tensorflow.serving.SignatureDefMap")), message(2, signatures))
	return join(message(1, asked.marshal(false)), message(2, join(message(1, []byte("signature_def")), message(2, packed)))), nil
}
