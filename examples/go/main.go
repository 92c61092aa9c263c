// Command go enqueues a rollout, claims it, adds spans, reports success and waits for the outcome.
//
// The generated package is made by `make test-languages`.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "lightning-store-grpc/go/lightning_store/v1"
)

// span has the members of a span document that this program uses; docs/span_document.md has all of them.
type span struct {
	RolloutID  string         `json:"rollout_id"`
	AttemptID  string         `json:"attempt_id"`
	TraceID    string         `json:"trace_id"`
	SpanID     string         `json:"span_id"`
	ParentID   *string        `json:"parent_id"`
	Name       string         `json:"name"`
	StartTime  float64        `json:"start_time"`
	EndTime    float64        `json:"end_time"`
	Attributes map[string]any `json:"attributes"`
}

func main() {
	endpoint := "localhost:4747"
	if len(os.Args) > 1 {
		endpoint = os.Args[1]
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, endpoint); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, endpoint string) error {
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	store := pb.NewLightningStoreServiceClient(connection)

	input := `{"question": "6 x 7"}`
	queued, err := store.EnqueueRollouts(ctx, &pb.EnqueueRolloutsRequest{
		RequestId: randomHex(16),
		Rollouts:  []*pb.NewRollout{{InputJson: &input, Mode: pb.RolloutMode_ROLLOUT_MODE_TRAIN}},
	})
	if err != nil {
		return fmt.Errorf("enqueue: %w", err)
	}
	rolloutID := queued.Rollouts[0].RolloutId

	worker := "go-runner"
	claimed, err := store.DequeueRollouts(ctx, &pb.DequeueRolloutsRequest{
		RequestId: randomHex(16),
		WorkerId:  &worker,
		MaxWait:   durationpb.New(10 * time.Second),
	})
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	if len(claimed.Rollouts) == 0 {
		return errors.New("claim: nothing is queued")
	}
	attempt := claimed.Rollouts[0].LatestAttempt

	if err := addSpans(ctx, store, attempt); err != nil {
		return fmt.Errorf("add spans: %w", err)
	}

	_, err = store.UpdateAttempt(ctx, &pb.UpdateAttemptRequest{
		RequestId:  randomHex(16),
		RolloutId:  attempt.RolloutId,
		Attempt:    &pb.UpdateAttemptRequest_AttemptId{AttemptId: attempt.AttemptId},
		Update:     &pb.AttemptUpdate{Status: pb.AttemptStatus_ATTEMPT_STATUS_SUCCEEDED},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"status"}},
	})
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}

	ended, err := wait(ctx, store, rolloutID)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	return printSpans(ctx, store, ended)
}

func addSpans(ctx context.Context, store pb.LightningStoreServiceClient, attempt *pb.Attempt) error {
	now := float64(time.Now().UnixNano()) / 1e9
	traceID, rootID := randomHex(16), randomHex(8)
	spans := []span{
		{SpanID: rootID, Name: "act", Attributes: map[string]any{"reward": 1.0}},
		{SpanID: randomHex(8), ParentID: &rootID, Name: "answer", Attributes: map[string]any{"token_ids": []int{42, 7}}},
	}
	request := &pb.AddSpansRequest{RequestId: randomHex(16)}
	for _, one := range spans {
		one.RolloutID, one.AttemptID, one.TraceID = attempt.RolloutId, attempt.AttemptId, traceID
		one.StartTime, one.EndTime = now-1, now
		document, err := json.Marshal(one)
		if err != nil {
			return err
		}
		request.Spans = append(request.Spans, &pb.NewSpan{DocumentJson: string(document)})
	}
	response, err := store.AddSpans(ctx, request)
	if err != nil {
		return err
	}
	for index, outcome := range response.Outcomes {
		if rejected := outcome.GetRejected(); rejected != nil {
			return fmt.Errorf("span %d: %s", index, rejected.Message)
		}
	}
	return nil
}

// wait returns the rollout when it has ended. The server bounds each call, so it is made again until it is complete.
func wait(ctx context.Context, store pb.LightningStoreServiceClient, rolloutID string) (*pb.Rollout, error) {
	for {
		response, err := store.WaitForRollouts(ctx, &pb.WaitForRolloutsRequest{RolloutIds: []string{rolloutID}})
		if err != nil {
			return nil, err
		}
		if response.Complete {
			if len(response.Rollouts) == 0 {
				return nil, fmt.Errorf("rollout %s is not known", rolloutID)
			}
			return response.Rollouts[0], nil
		}
	}
}

func printSpans(ctx context.Context, store pb.LightningStoreServiceClient, rollout *pb.Rollout) error {
	fmt.Println(rollout.RolloutId, rollout.Status)
	listed, err := store.ListSpans(ctx, &pb.ListSpansRequest{RolloutId: rollout.RolloutId})
	if err != nil {
		return err
	}
	for _, row := range listed.Spans {
		var one span
		if err := json.Unmarshal([]byte(row.DocumentJson), &one); err != nil {
			return err
		}
		fmt.Println(row.GetSequenceId(), one.Name, one.Attributes)
	}
	return nil
}

func randomHex(bytes int) string {
	random := make([]byte, bytes)
	rand.Read(random) // never fails
	return hex.EncodeToString(random)
}
