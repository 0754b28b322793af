// The whole road by OpenAI's client for Node: upload, job, events, checkpoints, model, chat. BASE_URL, API_KEY, ROWS and SECTIONS come from run.py.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const { BASE_URL, API_KEY, APPROVER_KEYS, ROWS, SECTIONS, HYPER } = process.env;
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY, maxRetries: 0, timeout: 120_000 });
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

await assert.rejects(new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "sk-ft-no", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);

const file = await client.files.create({ file: await toFile(fs.readFileSync(ROWS), "rows.jsonl"), purpose: "fine-tune" });
console.log("file", file.id, file.status);

await assert.rejects(client.fineTuning.jobs.create({ model: "gpt-4o-mini", training_file: file.id }), OpenAI.BadRequestError);
await assert.rejects(client.fineTuning.jobs.retrieve("ftjob-none"), OpenAI.NotFoundError);

let job = await client.fineTuning.jobs.create({
  model: "tiny", training_file: file.id, suffix: "router", seed: 1, metadata: { by: "node" },
  method: { type: "supervised", supervised: { hyperparameters: JSON.parse(HYPER) } },
  platform: { recipe: JSON.parse(SECTIONS), placement: { checkpoint_steps: 10 } },
});
assert.equal(job.status, "queued");

while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await pause(2);
  job = await client.fineTuning.jobs.retrieve(job.id);
  console.log("job", job.status, job.platform.status, job.platform.step ?? "");
}
assert.equal(job.status, "succeeded", JSON.stringify(job.error));
assert.equal(job.fine_tuned_model, "acme/router@1");

const messages = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 5 })) messages.push(event.message);
assert.equal(messages.at(-1), "the job is queued");
const steps = [];
for await (const saved of client.fineTuning.jobs.checkpoints.list(job.id)) steps.push(saved.step_number);
assert.ok(steps.length > 1 && steps[0] > steps.at(-1), String(steps));

const model = await client.models.retrieve(job.fine_tuned_model);
assert.equal(model.platform.job_id, job.id);
const listed = [];
for await (const found of client.models.list()) listed.push(found.id);
assert.ok(listed.includes(model.id));

const [ann, ben] = JSON.parse(APPROVER_KEYS).map((apiKey) => new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey, maxRetries: 0 }));
let moved = await ann.post(`/models/${model.id}/deploy`, { body: { stage: "production" } });
if (moved.waits_for_approval) moved = await ben.post(`/models/${model.id}/approve`, { body: { reason: "looked at" } });
assert.equal(moved.stage, "production");

const answer = await client.chat.completions.create({
  model: "acme/router", messages: [{ role: "user", content: "is it?" }], max_tokens: 4, temperature: 0,
});
console.log("answer", JSON.stringify(answer.choices[0].message.content), answer.usage.total_tokens, "tokens");
assert.ok(answer.usage.completion_tokens > 0);
console.log("the whole road by Node: ok");
