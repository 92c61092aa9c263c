// Enqueues a rollout, claims it, adds spans, reports success and waits for the outcome.
//
//   npm install && node main.js localhost:4747

import { randomBytes, randomUUID } from "node:crypto";
import { promisify } from "node:util";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTO_ROOT = fileURLToPath(new URL("../../proto", import.meta.url));
const TIMEOUT_MS = 30_000;

const definition = protoLoader.loadSync("lightning_store/v1/service.proto", {
  includeDirs: [PROTO_ROOT],
  keepCase: true, // fields are named as in the proto
  longs: String, // int64 may exceed Number.MAX_SAFE_INTEGER
  enums: String,
  defaults: true,
  oneofs: true,
});
const { LightningStoreService } = grpc.loadPackageDefinition(definition).lightning_store.v1;

const store = new LightningStoreService(process.argv[2] ?? "localhost:4747", grpc.credentials.createInsecure());

/** Calls a unary method and returns its response. */
async function call(method, request) {
  return promisify(store[method].bind(store))(request, { deadline: Date.now() + TIMEOUT_MS });
}

/** Calls a method of class ONCE. A retry would send the same request id. */
async function callOnce(method, request) {
  return call(method, { request_id: randomUUID(), ...request });
}

/** Returns the rollout when it has ended. The server bounds each call, so it is made again until it is complete. */
async function wait(rolloutId) {
  for (;;) {
    const { complete, rollouts } = await call("WaitForRollouts", { rollout_ids: [rolloutId] });
    if (complete) return rollouts[0];
  }
}

const queued = await callOnce("EnqueueRollouts", {
  rollouts: [{ input_json: JSON.stringify({ question: "6 x 7" }), mode: "ROLLOUT_MODE_TRAIN" }],
});
const claimed = await callOnce("DequeueRollouts", { worker_id: "node-runner", max_wait: { seconds: 10 } });
const { rollout_id, attempt_id } = claimed.rollouts[0].latest_attempt;

// docs/span_document.md has all members of a span.
const now = Date.now() / 1000;
const shared = {
  rollout_id,
  attempt_id,
  trace_id: randomBytes(16).toString("hex"),
  start_time: now - 1,
  end_time: now,
};
const root = randomBytes(8).toString("hex");
const spans = [
  { ...shared, span_id: root, name: "act", attributes: { reward: 1.0 } },
  { ...shared, span_id: randomBytes(8).toString("hex"), parent_id: root, name: "answer", attributes: { token_ids: [42, 7] } },
];
const { outcomes } = await callOnce("AddSpans", { spans: spans.map((span) => ({ document_json: JSON.stringify(span) })) });
for (const { rejected } of outcomes) {
  if (rejected) throw new Error(rejected.message);
}

await callOnce("UpdateAttempt", {
  rollout_id,
  attempt_id,
  update: { status: "ATTEMPT_STATUS_SUCCEEDED" },
  update_mask: { paths: ["status"] },
});

const ended = await wait(queued.rollouts[0].rollout_id);
console.log(ended.rollout_id, ended.status);
const listed = await call("ListSpans", { rollout_id: ended.rollout_id });
for (const { sequence_id, document_json } of listed.spans) {
  const { name, attributes } = JSON.parse(document_json);
  console.log(sequence_id, name, JSON.stringify(attributes));
}
store.close();
