// The official OpenAI npm client, unchanged, against a running server: one JSON line per case.
// usage: node client.mjs BASE_URL PATH_OF_THE_PACKAGE (test_clients_node.py runs it)
import assert from 'node:assert/strict';
import {pathToFileURL} from 'node:url';

const [base, folder] = process.argv.slice(2);
const {default: OpenAI} = await import(pathToFileURL(`${folder}/index.mjs`));
const client = new OpenAI({baseURL: `${base}/v1`, apiKey: 'unused', maxRetries: 0});

const question = [{role: 'user', content: 'What is the capital of France? Answer in one word.'}];
const story = [{role: 'user', content: 'Write a very long story about a dragon and a princess.'}];
const model = 'smollm2';
const greedy = {model, temperature: 0, max_tokens: 16, messages: question};
const endless = {...greedy, messages: story, max_tokens: 3000, ignore_eos: true};

async function metric(name) {
  const text = await (await fetch(`${base}/metrics`)).text();
  const rows = text.split('\n').filter((line) => line.split(/[{ ]/)[0] === name);
  assert.ok(rows.length > 0, `${name} in /metrics`);
  return rows.reduce((sum, line) => sum + Number(line.split(' ').pop()), 0);
}

// Waits until the engine has cancelled what leave() left behind.
async function cancels(leave) {
  const before = await metric('kr_requests_cancelled_total');
  for (let tries = 0; tries < 12; tries++) { // it may have gone before the engine had it
    await leave();
    for (const end = Date.now() + 10_000; Date.now() < end;) {
      if (await metric('kr_requests_cancelled_total') > before) return;
      await new Promise((go) => setTimeout(go, 10));
    }
  }
  assert.fail('the cancelled request is counted');
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const cases = {
  async models() {
    const ids = [];
    for await (const found of client.models.list()) ids.push(found.id);
    assert.deepEqual(ids, [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async chat() {
    const answer = await client.chat.completions.create(greedy);
    assert.match(answer.choices[0].message.content, /Paris/);
    assert.equal(answer.usage.total_tokens,
                 answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },
  async stream() {
    const whole = await client.chat.completions.create(greedy);
    const chunks = await collect(await client.chat.completions.create(
        {...greedy, stream: true, stream_options: {include_usage: true}}));
    const last = chunks.pop();
    assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join(''),
                 whole.choices[0].message.content);
    assert.equal(chunks.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
    assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  },
  async stream_helper() {
    const stream = client.chat.completions.stream(greedy);
    let text = '';
    stream.on('content', (delta) => { text += delta; });
    assert.equal(await stream.finalContent(), text);
    assert.match(text, /Paris/);
  },
  async completions() {
    const ask = {model, prompt: ['Hello', 'The sky is'], temperature: 0, max_tokens: 5};
    const answer = await client.completions.create(ask);
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
    const texts = ['', ''];
    for (const chunk of await collect(await client.completions.create({...ask, stream: true})))
      for (const choice of chunk.choices) texts[choice.index] += choice.text;
    assert.deepEqual(texts, answer.choices.map((choice) => choice.text));
  },
  async logprobs() {
    const answer = await client.chat.completions.create(
        {...greedy, logprobs: true, top_logprobs: 2});
    const tokens = answer.choices[0].logprobs.content;
    assert.ok(tokens.length > 0);
    for (const token of tokens) {
      assert.ok(token.logprob <= 0);
      assert.equal(token.top_logprobs.length, 2);
      assert.equal(token.top_logprobs[0].token, token.token);
    }
  },
  async embeddings() {
    const input = ['The sky is blue.', 'Dogs bark.'];
    const packed = await client.embeddings.create({model, input});
    const plain = await client.embeddings.create({model, input, encoding_format: 'float'});
    assert.equal(packed.data[1].embedding.length, 576);
    packed.data[1].embedding.forEach((value, i) =>
      assert.ok(Math.abs(value - plain.data[1].embedding[i]) < 1e-5));
  },
  async responses() {
    const ask = {model, temperature: 0, max_output_tokens: 16, input: question[0].content};
    const first = await client.responses.create(ask);
    assert.match(first.output_text, /Paris/);
    const events = await collect(await client.responses.create({...ask, stream: true}));
    assert.equal(events[0].type, 'response.created');
    assert.equal(events.filter((event) => event.type === 'response.output_text.delta')
                     .map((event) => event.delta).join(''), first.output_text);
    const second = await client.responses.create(
        {...ask, input: 'And of Italy?', previous_response_id: first.id});
    assert.ok(second.usage.input_tokens > first.usage.input_tokens);
    assert.equal((await client.responses.retrieve(first.id)).output_text, first.output_text);
    await client.responses.delete(first.id);
    await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({...greedy, model: 'nobody'}), (error) =>
      error instanceof OpenAI.NotFoundError && error.code === 'model_not_found');
    for (const [field, value] of [['temperature', 5], ['frobnicate', 1], ['messages', []]])
      await assert.rejects(client.chat.completions.create({...greedy, [field]: value}), (error) =>
        error instanceof OpenAI.BadRequestError && error.param === field &&
        typeof error.requestID === 'string');
  },
  async error_event() {
    const isLate = (error) =>
      error instanceof OpenAI.APIError && error.code === 'deadline_exceeded';
    for (let deadline_ms = 300;; deadline_ms *= 2) { // a status while there is no first token yet
      let stream;
      try {
        stream = await client.chat.completions.create({...endless, stream: true, deadline_ms});
      } catch (error) {
        assert.ok(isLate(error) && error.status === 504, error);
        continue;
      }
      await assert.rejects(collect(stream), isLate);
      return;
    }
  },
  async leaving_a_loop() {
    await cancels(async () => {
      let n = 0;
      for await (const chunk of await client.chat.completions.create({...endless, stream: true})) {
        assert.equal(chunk.choices[0].finish_reason, null);
        if (++n === 5) break;
      }
    });
  },
  async abort_of_a_stream() {
    await cancels(async () => {
      const controller = new AbortController();
      const stream = await client.chat.completions.create({...endless, stream: true},
                                                          {signal: controller.signal});
      for await (const chunk of stream) if (chunk.choices) controller.abort();
    });
  },
  async abort_of_an_answer_in_one_piece() {
    await cancels(() => assert.rejects(
        client.chat.completions.create(endless, {timeout: 500}), OpenAI.APIConnectionTimeoutError));
  },
};

for (const [name, run] of Object.entries(cases)) {
  let error = null;
  try {
    await run();
  } catch (caught) {
    error = String(caught?.stack ?? caught);
  }
  console.log(JSON.stringify({name, error}));
}
