// Breaker, retry and supervisor on a scripted runtime.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { EngineClientError } from '../src/errors.js';
import { CircuitBreakers } from '../src/rpc/breaker.js';
import { RpcClient } from '../src/rpc/client.js';
import { Supervisor } from '../src/rpc/supervisor.js';
import type { SupervisorOptions } from '../src/rpc/supervisor.js';
import { NOTHING, ScriptedTransport, SilentLogger, eventually, failure } from './support.js';
import type { Answers } from './support.js';

const RETRY = { maxAttempts: 3, initialDelayMs: 1, multiplier: 2, maxDelayMs: 5, jitter: 0.25 };

function breakers(now: () => number, changes: string[] = []): CircuitBreakers {
  return new CircuitBreakers({
    failureThreshold: 5, failureWindowMs: 60_000, recoveryTimeoutMs: 10_000, successThreshold: 2,
    now, onChange: (circuit, from, to) => changes.push(`${circuit}: ${from} > ${to}`),
  });
}

interface Rig {
  supervisor: Supervisor;
  transports: ScriptedTransport[];
  events: string[];
  last(): ScriptedTransport;
}

function rig(answers: Answers = () => undefined, more: Partial<SupervisorOptions> = {}): Rig {
  const transports: ScriptedTransport[] = [];
  const events: string[] = [];
  const supervisor = new Supervisor({
    makeTransport: () => {
      const transport = new ScriptedTransport(answers);
      transports.push(transport);
      return transport;
    },
    limits: { maxPending: 10, maxWaiting: 10 },
    startupTimeoutMs: 60_000, maxRestarts: 3, restartDelayBaseMs: 1, restartDelayMaxMs: 4,
    healthyAfterMs: 60_000, healthIntervalMs: 0, healthFailuresMax: 3, logger: new SilentLogger(),
    onStatus: (status, previous) => events.push(`${previous} > ${status}`),
    onReady: () => events.push('connected'),
    onLost: () => events.push('lost'),
    ...more,
  });
  return { supervisor, transports, events, last: () => transports.at(-1) as ScriptedTransport };
}

function client(supervisor: Supervisor, circuit: CircuitBreakers, timeoutMs = 60_000,
  retried: string[] = []): RpcClient {
  return new RpcClient({
    connect: () => supervisor.connect(), breakers: circuit, retry: RETRY, timeoutMs,
    noteSuccess: () => supervisor.noteSuccess(), observer: { retried: (m) => retried.push(m) },
  });
}

test('the circuit opens at the fifth fault, lets one probe through, closes after two', () => {
  let now = 0;
  const changes: string[] = [];
  const circuit = breakers(() => now, changes);
  for (let n = 0; n < 4; n += 1) circuit.fail('a');
  circuit.enter('a');
  circuit.succeed('a'); // forgets the four
  for (let n = 0; n < 5; n += 1) {
    circuit.enter('a');
    circuit.fail('a');
  }
  assert.throws(() => circuit.enter('a'), { name: 'CircuitBreakerOpenError', code: -32000 });
  assert.ok(circuit.anyOpen);
  circuit.enter('b'); // another circuit
  now = 10_001;
  circuit.enter('a');
  assert.throws(() => circuit.enter('a'), { name: 'CircuitBreakerOpenError' });
  circuit.succeed('a');
  circuit.enter('a');
  circuit.succeed('a');
  circuit.enter('a');
  circuit.enter('a');
  assert.deepEqual(changes,
    ['a: closed > open', 'a: open > half-open', 'a: half-open > closed']);
});

test('a minute of quiet forgets faults, and a failed probe opens again', () => {
  let now = 0;
  const circuit = breakers(() => now);
  for (let n = 0; n < 4; n += 1) circuit.fail('a');
  now = 60_001;
  circuit.fail('a');
  circuit.enter('a');
  for (let n = 0; n < 4; n += 1) circuit.fail('a');
  now += 10_001;
  circuit.enter('a');
  circuit.fail('a');
  assert.throws(() => circuit.enter('a'), { name: 'CircuitBreakerOpenError' });
});

test('one crash is one fault, however many calls it took along', () => {
  const circuit = breakers(() => 0);
  const crash = {};
  for (let n = 0; n < 50; n += 1) circuit.fail('a', crash);
  circuit.enter('a');
});

test('lesson 36: errors of users never open the breaker', async () => {
  const numbers = [-32602, -32600, -32601, -32001, -32002, -32003, -32004, -32005, -32000];
  const { supervisor } = rig((request, transport) => {
    if (request.method !== 'load_model') return undefined;
    transport.fail(request, request.params['number'] as number);
    return NOTHING;
  });
  const circuit = breakers(() => 0);
  const calls = client(supervisor, circuit);
  for (const number of numbers) {
    for (let n = 0; n < 6; n += 1) await failure(calls.call('load_model', { number }));
  }
  assert.equal(circuit.anyOpen, false);
  for (let n = 0; n < 5; n += 1) await failure(calls.call('load_model', { number: -32603 }));
  const open = await failure(calls.call('load_model', { number: -32602 }), 'TransportError');
  const details = open.details as Record<string, unknown>;
  assert.equal(details['circuit'], 'load_model');
  assert.equal(details['circuitState'], 'open');
  assert.equal(details['method'], 'load_model');
  assert.ok(Number(details['retryAfterMs']) > 0);
  await supervisor.stop();
});

test('a limit that the caller chose is no fault; circuits are of a model', async () => {
  const { supervisor } = rig(() => undefined);
  const circuit = breakers(() => 0);
  const calls = client(supervisor, circuit);
  for (let n = 0; n < 7; n += 1) {
    await failure(calls.call('embed', {}, { timeoutMs: 1, model: 'a' }), 'Timeout');
  }
  assert.equal(circuit.anyOpen, false);
  const own = client(supervisor, circuit, 1);
  for (let n = 0; n < 5; n += 1) await failure(own.call('embed', {}, { model: 'a' }), 'Timeout');
  await failure(own.call('embed', {}, { model: 'a' }), 'TransportError');
  await failure(own.call('embed', {}, { model: 'b' }), 'Timeout');
  await supervisor.stop();
});

test('reads are asked again after a time-out or a full runtime, writes never', async () => {
  let n = 0;
  const { supervisor, last } = rig((request, transport) => {
    if (request.method === 'tokenize' || request.method === 'load_model') {
      n += 1;
      if (n < 3) {
        transport.fail(request, -32000, 'full', { kr_status: 14 });
        return NOTHING;
      }
      return { tokens: [7] };
    }
    return undefined;
  });
  const retried: string[] = [];
  const calls = client(supervisor, breakers(() => 0), 20, retried);
  assert.deepEqual(await calls.call('tokenize', {}), { tokens: [7] });
  assert.deepEqual(retried, ['tokenize', 'tokenize']);
  n = 0;
  await failure(calls.call('load_model', {}), 'ServerError');
  await failure(calls.call('detokenize', {}), 'Timeout');
  assert.equal(last().of('detokenize').length, 3);
  await failure(calls.call('detokenize', {}, { timeoutMs: 10 }), 'Timeout');
  assert.equal(last().of('detokenize').length, 4);
  await supervisor.stop();
});

test('callers share one start, and what cannot start says so each time', async () => {
  const { supervisor, transports, events } = rig();
  const [a, b] = await Promise.all([supervisor.connect(), supervisor.connect()]);
  assert.equal(a, b);
  assert.equal(transports.length, 1);
  assert.deepEqual(events, ['stopped > starting', 'connected', 'starting > ready']);
  await supervisor.stop();
  assert.equal(events.at(-1), 'ready > stopped');
  await supervisor.connect();
  assert.equal(transports.length, 2);
  await supervisor.stop();
});

test('lesson 34: a start that is not answered ends by its limit, its runtime too', async () => {
  const { supervisor, transports } = rig(() => NOTHING, { startupTimeoutMs: 5 });
  await failure(supervisor.connect(), 'Timeout');
  assert.ok(transports[0]?.isStopped);
  await failure(supervisor.connect(), 'Timeout');
  assert.equal(transports.length, 2);
  assert.equal(supervisor.status, 'error');
  await supervisor.stop();
});

test('lesson 34: a limit of a start that worked ends nothing later', async () => {
  const { supervisor, transports } = rig(() => undefined, { startupTimeoutMs: 40 });
  const connection = await supervisor.connect();
  await new Promise((resolve) => {
    setTimeout(resolve, 80);
  });
  assert.equal(supervisor.live, connection);
  assert.equal(transports.length, 1);
  await supervisor.stop();
});

test('lesson 34: start promises settle when the runtime dies or is stopped meanwhile', async () => {
  const dies = rig((_request, transport) => {
    queueMicrotask(() => transport.crash());
    return NOTHING;
  });
  await failure(dies.supervisor.connect());
  assert.equal(dies.transports.length, 1); // a start that failed is no storm
  await dies.supervisor.stop();
  const hangs = rig(() => NOTHING);
  await Promise.all([
    failure(hangs.supervisor.connect(), 'Cancelled'), hangs.supervisor.stop(),
  ]);
  const starting = failure(hangs.supervisor.connect(), 'Cancelled');
  await eventually('a start', () => hangs.transports.length > 0);
  await hangs.supervisor.stop();
  await starting;
  assert.ok(hangs.last().isStopped);
  assert.equal(hangs.supervisor.status, 'stopped');
});

test('lesson 34: a stop during the back-off ends it', async () => {
  const { supervisor, transports, last } = rig(() => undefined,
    { restartDelayBaseMs: 3_600_000, restartDelayMaxMs: 3_600_000 });
  await supervisor.connect();
  last().crash();
  await supervisor.connect(); // the first restart is immediate
  supervisor.noteSuccess();
  last().crash();
  const waiting = failure(supervisor.connect(), 'Cancelled');
  assert.equal(transports.length, 2);
  await supervisor.stop();
  await waiting;
  assert.equal(transports.length, 2);
  assert.equal(supervisor.status, 'stopped');
});

test('lesson 34: what belongs to a runtime that is gone touches the new one no more', async () => {
  const { supervisor, transports, events, last } = rig();
  const old = await supervisor.connect();
  const call = failure(old.call('generate', {}, { timeoutMs: 60_000 }), 'UnknownError');
  last().crash();
  await call;
  const fresh = await supervisor.connect();
  assert.notEqual(fresh, old);
  transports[0]?.crash();
  transports[0]?.say({ id: 1, result: 'late' });
  assert.equal(supervisor.live, fresh);
  await failure(old.call('generate', {}, { timeoutMs: 60_000 }));
  assert.deepEqual(events.filter((event) => event === 'lost'), ['lost']);
  await supervisor.stop();
});

test('lesson 35: the first restart is immediate, later ones wait, health forgives', async () => {
  const { supervisor, events, transports, last } = rig(() => undefined,
    { restartDelayBaseMs: 3_600_000, restartDelayMaxMs: 3_600_000, healthyAfterMs: 1 });
  await supervisor.connect();
  for (let n = 1; n <= 5; n += 1) {
    await new Promise((resolve) => {
      setTimeout(resolve, 5); // longer than healthyAfterMs: the crash before is forgotten
    });
    supervisor.noteSuccess();
    last().crash();
    await supervisor.connect(); // would take an hour if it were counted
    assert.equal(transports.length, n + 1);
  }
  assert.equal(events.filter((event) => event === 'connected').length, 6);
  await supervisor.stop();
});

test('a runtime that ends without ever answering is left alone until the next call', async () => {
  const { supervisor, transports, last } = rig();
  await supervisor.connect();
  for (let n = 0; n < 3; n += 1) {
    last().crash();
    await supervisor.connect();
  }
  assert.equal(transports.length, 4);
  last().crash();
  assert.equal(supervisor.status, 'error');
  await new Promise((resolve) => {
    setTimeout(resolve, 30);
  });
  assert.equal(transports.length, 4);
  await supervisor.connect();
  assert.equal(transports.length, 5);
  await supervisor.stop();
});

test('restarts that fail are given up with the last error, for all who wait', async () => {
  let isBroken = false;
  const { supervisor, last } = rig((request, transport) => {
    if (!isBroken) return undefined;
    transport.fail(request, -32099, 'broken');
    return NOTHING;
  });
  await supervisor.connect();
  isBroken = true;
  last().crash();
  const errors = await Promise.all([supervisor.connect(), supervisor.connect()]
    .map((promise) => failure(promise, 'RuntimeError')));
  assert.ok(errors.every((error: EngineClientError) => error.message === 'broken'));
  await eventually('error', () => supervisor.status === 'error');
  await supervisor.stop();
});

test('a child that answers no more is ended and started anew, when it is asked', async () => {
  let isHung = false;
  const { supervisor, transports, events } = rig(({ method }, transport) => {
    if (method !== 'runtime/state') return undefined;
    return isHung && transport === transports[0] ? NOTHING : { loaded_models: [] };
  }, { healthIntervalMs: 20 });
  const first = await supervisor.connect();
  const [transport] = transports;
  await eventually('it is asked', () => (transport?.of('runtime/state').length ?? 0) > 3);
  assert.equal(supervisor.live, first);
  const call = failure(first.call('generate', {}, { timeoutMs: 120_000 }), 'TransportError');
  isHung = true;
  assert.match((await call).message, /3 questions unanswered/);
  assert.ok(transport?.isStopped);
  const second = await supervisor.connect();
  assert.notEqual(second, first);
  const asked = transports[1];
  await eventually('so is the next one', () => (asked?.of('runtime/state').length ?? 0) > 3);
  assert.equal(supervisor.live, second);
  assert.deepEqual(events.filter((event) => event === 'lost'), ['lost']);
  await supervisor.stop();
});
