// Puts an engine together: every service, each given the functions that it needs and nothing else.
import { EngineClientError, toEngineError } from '../errors.js';
import { loadConfig } from '../config.js';
import type { Config } from '../config.js';
import { failOfIssues } from '../issues.js';
import { CircuitBreakers } from '../rpc/breaker.js';
import { RpcClient } from '../rpc/client.js';
import { Supervisor } from '../rpc/supervisor.js';
import { EngineOptionsSchema } from '../schemas.js';
import { QosMonitor } from '../services/index.js';
import { makeTransport } from '../transport/make.js';
import type { Transport } from '../transport/transport.js';
import type { EngineOptions, Logger } from '../types.js';
import type { Announcer } from './announcer.js';
import { makeQueues } from './batching.js';
import type { Queues } from './batching.js';
import { GeneratorFactory } from './generator-factory.js';
import { ModelManager } from './model-manager.js';
import { Reuse } from './reuse.js';
import { StreamRegistry } from './stream-registry.js';

export interface Parts {
  readonly config: Config;
  readonly supervisor: Supervisor;
  readonly breakers: CircuitBreakers;
  readonly client: RpcClient;
  readonly models: ModelManager;
  readonly streams: StreamRegistry;
  readonly generators: GeneratorFactory;
  readonly queues: Queues;
  readonly reuse: Reuse;
  readonly qos: QosMonitor;
}

export function checkOptions(options: unknown): EngineOptions {
  const parsed = EngineOptionsSchema.safeParse(options ?? {});
  if (!parsed.success) throw failOfIssues('createEngine', parsed.error.issues);
  return (options ?? {}) as EngineOptions;
}

function makeClient(config: Config, supervisor: Supervisor, listener: Announcer):
{ client: RpcClient; breakers: CircuitBreakers } {
  const { retry, circuit_breaker: breaker } = config.json_rpc;
  const breakers = new CircuitBreakers({
    failureThreshold: breaker.failure_threshold, failureWindowMs: breaker.failure_window_ms,
    recoveryTimeoutMs: breaker.recovery_timeout_ms,
    successThreshold: breaker.half_open_success_threshold,
    onChange: (circuit, from, to) => listener.circuit(circuit, from, to),
  });
  const client = new RpcClient({
    connect: () => supervisor.connect(), breakers,
    retry: {
      maxAttempts: retry.max_attempts, initialDelayMs: retry.initial_delay_ms,
      multiplier: retry.backoff_multiplier, maxDelayMs: retry.max_delay_ms, jitter: retry.jitter,
    },
    timeoutMs: config.json_rpc.default_timeout_ms,
    noteSuccess: () => supervisor.noteSuccess(), observer: listener.rpc,
  });
  return { client, breakers };
}

function makeStreams(config: Config, supervisor: Supervisor, client: RpcClient): StreamRegistry {
  return new StreamRegistry({
    maxActive: config.stream_registry.max_active_streams,
    maxWaiting: config.stream_registry.max_waiting_streams,
    credits: config.stream_registry.max_unacked_chunks,
    sendCredits: (streamId, credits) => {
      supervisor.live?.notify('stream.credit', { stream_id: streamId, credits });
    },
    sendCancel: (streamId) => {
      if (supervisor.live === undefined) return;
      client.call('cancel', { stream_id: streamId }, { isUrgent: true }).catch(() => {});
    },
  });
}

function makeQos(config: Config, listener: Announcer, restart: () => void): QosMonitor {
  const { qos } = config;
  return new QosMonitor({
    ...(qos.policies && { policies: qos.policies.map(({ max, min, ...policy }) => ({
      ...policy, ...(max !== undefined && { max }), ...(min !== undefined && { min }),
    })) }),
    actions: {
      alert: (violation) => listener.violated(violation),
      restart: (violation) => {
        listener.violated(violation);
        restart();
      },
    },
    onEvaluated: (broken) => listener.hook('onQosEvaluated', broken),
    evaluateEveryMs: qos.evaluation_interval_ms, windowMs: qos.window_ms,
    cooldownMs: qos.cooldown_ms,
  });
}

export function makeParts(options: EngineOptions, logger: Logger, listener: Announcer,
  runner: (() => Transport) | undefined): Parts {
  const config = loadConfig(options.config, (message) => logger.warn(`kr-serve: ${message}`));
  const reuse = new Reuse(config);
  const qos = makeQos(config, listener, () => restart());
  const supervisor: Supervisor = new Supervisor({
    makeTransport: runner ?? (() => makeTransport(options, config, logger)),
    limits: {
      maxPending: config.json_rpc.max_pending_requests,
      maxWaiting: config.json_rpc.max_waiting_requests,
    },
    startupTimeoutMs: config.runtime.startup_timeout_ms,
    maxRestarts: config.runtime.max_restarts,
    restartDelayBaseMs: config.runtime.restart_delay_base_ms,
    restartDelayMaxMs: config.runtime.restart_delay_max_ms,
    healthyAfterMs: config.runtime.healthy_after_ms,
    healthIntervalMs: config.runtime.health_interval_ms,
    healthFailuresMax: config.runtime.health_failures_max,
    logger,
    onStatus: (status, previous) => listener.status(status, previous),
    onReady: (connection, found) => {
      connection.onNotification = (method, params) => streams.handle(method, params);
      models.connected(found);
    },
    onLost: (error) => {
      streams.failAll(error);
      models.lost();
      listener.failed(error, 'runtime');
    },
  });
  const { client, breakers } = makeClient(config, supervisor, listener);
  const streams = makeStreams(config, supervisor, client);
  const models = new ModelManager({
    call: (method, params, request) => client.call(method, params, request),
    connect: () => supervisor.connect(),
    maxModels: config.model.max_loaded_models,
    contextLength: config.model.default_context_length,
    loadTimeoutMs: config.model.load_timeout_ms,
    onLoaded: (handle) => {
      reuse.cache.clearGroup(handle.descriptor.id);
      listener.loaded(handle);
    },
    onUnloaded: (modelId) => {
      reuse.cache.clearGroup(modelId);
      listener.unloaded(modelId);
    },
    onInvalidated: (modelId, reason) => listener.invalidated(modelId, reason),
    onError: (error, context) => listener.failed(error, context),
  });
  const generators = new GeneratorFactory({
    registry: streams,
    call: (method, params, request) => client.call(method, params, request),
    acquire: (modelId) => models.acquire(modelId),
    defaultsOf: (modelId) => models.defaultsOf(modelId),
    observer: listener.generation(qos),
    timeoutMs: config.stream_registry.default_timeout_ms,
    maxTokens: config.model.default_max_tokens,
    credits: config.stream_registry.max_unacked_chunks,
  });
  const restart = (): void => {
    const error = new EngineClientError('TransportError', 'the runtime is started anew (qos)');
    streams.failAll(error);
    models.lost();
    supervisor.renew(error)
      .catch((error: unknown) => listener.failed(toEngineError(error), 'qos'));
  };
  return {
    config, supervisor, breakers, client, models, streams, generators, reuse, qos,
    queues: makeQueues(client, config, (dispatch) => {
      listener.hook('onBatchDispatched', { ...dispatch, activeStreams: streams.nActive });
    }),
  };
}
