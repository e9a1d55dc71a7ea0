// The engine: the public methods over the parts. It starts its runtime on first use, may be used
// again after shutdown(), and never throws out of an event.
import { EventEmitter } from 'node:events';
import type { Named } from './aliases.js';
import type {
  EngineEventMethods, EngineListener, EngineMethods, ReuseStats, SnakeMethods,
} from './api.js';
import { artifactCacheHealth } from './artifact-cache.js';
import {
  checkCountRequest, checkDetokenizeRequest, checkEmbedRequest, checkGeneratorOptions,
  checkGeneratorParams, checkLoadModelOptions, checkModelId, checkTokenizeOptions,
  checkTokenizeRequest,
} from './check.js';
import type { Config } from './config.js';
import { loadConfig } from './config.js';
import { Announcer } from './core/announcer.js';
import { checkOptions, makeParts } from './core/parts.js';
import type { Parts } from './core/parts.js';
import { EngineClientError, cancelled, toEngineError } from './errors.js';
import { defaultLogger } from './log.js';
import type { BatchStats, QosReport } from './services/index.js';
import { addSnakeNames } from './snake.js';
import { createTelemetryBridge } from './telemetry/index.js';
import type { TelemetryManager } from './telemetry/index.js';
import type { Transport } from './transport/transport.js';
import type {
  CacheHealth, ChatMessage, ChatParams, CompatibilityReport, CountTokensRequest,
  CreateGeneratorOptions, DetokenizeRequest, DetokenizeResponse, EmbedRequest, EmbedResponse,
  EngineEvents, EngineOptions, GeneratorChunk, GeneratorParams, HealthStatus,
  LoadModelOptions, LoadVisionModelOptions, Logger, ModelCacheStats, ModelHandle, ReloadReport,
  RuntimeInfo, StreamMetrics, TelemetryReport, TokenizeOptions, TokenizeRequest, TokenizeResponse,
  VisionGeneratorChunk, VisionGeneratorParams, VisionModelHandle,
} from './types.js';
import {
  countToWire, embedToWire, embeddingsOfWire, infoOfWire, reportOfWire, telemetryOfWire,
  tokensOfWire,
} from './wire.js';
import type { WireEmbeddings, WireInfo, WireTelemetry } from './wire.js';

const HEALTH_TIMEOUT_MS = 5_000;
const STREAMS_DEGRADED = 10;

export interface EngineDependencies {
  /** Makes the transport of each start; for tests and for hosts with a runtime of their own. */
  runner?: () => Transport;
  logger?: Logger;
}

interface RuntimeState {
  loaded_models: { model_id: string; state: string }[];
  active_streams: number;
}

/** The snake_case twins. */
export interface Engine extends SnakeMethods {}
export class Engine extends EventEmitter implements EngineMethods, EngineEventMethods {
  private readonly options: EngineOptions;
  private readonly logger: Logger;
  private readonly announcer: Announcer;
  private readonly parts: Parts;
  /** Of the section `telemetry` of the configuration. */
  private readonly telemetry: TelemetryManager | undefined;
  private readonly createdAt = performance.now();
  private stopping: Promise<void> | undefined;
  private config: Config;

  constructor(options?: EngineOptions, dependencies: EngineDependencies = {}) {
    super();
    this.options = checkOptions(options);
    this.logger = dependencies.logger ?? defaultLogger();
    const { telemetry } = this.options;
    this.announcer = new Announcer(this, this.logger);
    if (telemetry?.enabled === true && telemetry.hooks) this.announcer.add(telemetry.hooks);
    this.parts = makeParts(this.options, this.logger, this.announcer, dependencies.runner);
    this.config = this.parts.config;
    this.telemetry = this.makeTelemetry();
  }

  /** The page of the metrics, while the configuration asks for one and the engine runs. */
  get telemetryPort(): number | undefined {
    return this.telemetry?.port;
  }

  /** Starts the runtime and loads what is to be there from the start. */
  async start(): Promise<void> {
    await this.telemetry?.start();
    await this.parts.supervisor.connect();
    if (this.config.qos.enabled) this.parts.qos.start();
    const names = [
      ...this.config.model.memory_cache.warmup_on_start, ...this.options.cache?.preloadModels ?? [],
    ];
    await Promise.all([...new Set(names)].map(async (name) => {
      await this.loadModel(name).catch((error: unknown) => {
        this.logger.warn(`kr-serve: ${name}: ${(error as Error).message}`);
        this.announcer.failed(toEngineError(error), 'warmup');
      });
    }));
  }

  // ---- models ----

  async loadModel(options: Named<LoadModelOptions> | string): Promise<ModelHandle> {
    return this.parts.models.load(checkLoadModelOptions(options));
  }

  async loadDraftModel(options: Named<LoadModelOptions> | string): Promise<ModelHandle> {
    return this.parts.models.load({ ...checkLoadModelOptions(options), draft: true });
  }

  async unloadModel(id: string): Promise<void> {
    await this.parts.models.unload(checkModelId('unloadModel', id));
  }

  async unloadDraftModel(id?: string): Promise<void> {
    await this.parts.models.unloadDraft(
      id === undefined ? undefined : checkModelId('unloadDraftModel', id));
  }

  async isDraftModelCompatible(primaryId: string, draftId: string): Promise<CompatibilityReport> {
    const { models, queues } = this.parts;
    const releases = await Promise.all([models.acquire(primaryId), models.acquire(draftId)]);
    try {
      const report = reportOfWire(await queues.checkDraft.enqueue({ primaryId, draftId }));
      if (report.compatible) models.pair(primaryId, draftId);
      return report;
    } finally {
      for (const release of releases) release();
    }
  }

  listModels(): ModelHandle[] {
    return this.parts.models.list();
  }

  getModelInfo(id: string): ModelHandle | undefined {
    return this.parts.models.get(id);
  }

  /** A load and one token, so that the first request finds everything in place. */
  async warmupModel(options: Named<LoadModelOptions> | string): Promise<void> {
    const handle = await this.loadModel(options);
    const model = handle.descriptor.id;
    const release = await this.parts.models.acquire(model);
    try {
      await this.parts.client.call('generate', {
        model_id: model, prompt: 'a', max_tokens: 1, temperature: 0, stream: false,
        ignore_eos: true, cache_prompt: false,
      }, { model });
    } finally {
      release();
    }
  }

  // ---- generations ----

  createGenerator(params: Named<GeneratorParams>, options?: CreateGeneratorOptions):
  AsyncGenerator<GeneratorChunk, void> {
    return this.parts.generators.create(params, options);
  }

  async generate(params: Named<GeneratorParams>,
    options?: CreateGeneratorOptions): Promise<string> {
    const checked = checkGeneratorParams(params);
    return this.parts.reuse.text(checked, checkGeneratorOptions(options),
      (own) => this.parts.generators.collect(checked, own));
  }

  /** Messages alone go to the only model that is loaded. */
  async chat(params: Named<ChatParams> | ChatMessage[],
    options?: CreateGeneratorOptions): Promise<string> {
    if (!Array.isArray(params)) return this.generate(params as GeneratorParams, options);
    await this.parts.supervisor.connect();
    const model = this.parts.models.only();
    if (model === undefined) {
      throw new EngineClientError('InvalidParams',
        `chat: 'model' must be given, ${this.parts.models.nReady} models are loaded`,
        { field: 'model' });
    }
    return this.generate({ model, messages: params }, options);
  }

  async cancel(streamId: string): Promise<boolean> {
    return this.parts.streams.cancel(streamId, cancelled('generate'));
  }

  // ---- text ----

  async tokenize(request: Named<TokenizeRequest>,
    options?: TokenizeOptions): Promise<TokenizeResponse> {
    const checked = checkTokenizeRequest(request);
    const { priority, signal, timeoutMs } = checkTokenizeOptions(options);
    return this.holding(checked.model, async () => tokensOfWire(
      await this.parts.queues.tokenize.enqueue(checked, {
        priority: priority === 'urgent' ? 'high' : priority === 'background' ? 'low' : 'normal',
        signal, timeoutMs,
      })));
  }

  async detokenize(request: Named<DetokenizeRequest>): Promise<DetokenizeResponse> {
    const { model, tokens, skipSpecialTokens } = checkDetokenizeRequest(request);
    return this.holding(model, () => this.parts.client.call('detokenize', {
      model_id: model, tokens,
      ...(skipSpecialTokens !== undefined && { skip_special_tokens: skipSpecialTokens }),
    }, { model }));
  }

  async countTokens(request: Named<CountTokensRequest>): Promise<number> {
    const checked = checkCountRequest(request);
    const answer = await this.holding(checked.model, () => this.parts.client.call<{
      count: number;
    }>('count_tokens', countToWire(checked), { model: checked.model }));
    return answer.count;
  }

  async embed(request: Named<EmbedRequest>): Promise<EmbedResponse> {
    const checked = checkEmbedRequest(request);
    return this.holding(checked.model, async () => embeddingsOfWire(
      await this.parts.client.call<WireEmbeddings>('embed', embedToWire(checked),
        { model: checked.model, timeoutMs: checked.timeoutMs })));
  }

  // ---- state ----

  async getRuntimeInfo(): Promise<RuntimeInfo> {
    const wire = await this.parts.client.call<WireInfo>('runtime/info', {});
    return infoOfWire(wire, this.parts.supervisor.live?.transport.kind ?? 'child');
  }

  async getTelemetryReport(): Promise<TelemetryReport> {
    return telemetryOfWire(await this.parts.client.call<WireTelemetry>('runtime/telemetry', {}));
  }

  /** Reads the file of `config` and that of the runtime (--config) anew. The engine's own options
   * act from the next engine on; what the runtime took over is in `changed`. */
  async reloadConfig(): Promise<ReloadReport> {
    const { config, runtime } = this.options;
    const isRuntimes = runtime?.args?.includes('--config') === true
      || (runtime?.env?.['KR_CONFIG'] ?? process.env['KR_CONFIG']) !== undefined;
    const report: ReloadReport = { success: true, changed: [], needsRestart: [] };
    if (!isRuntimes && typeof config !== 'string') {
      throw new EngineClientError('InvalidRequest', 'reloadConfig: there is no configuration file');
    }
    if (typeof config === 'string') {
      const next = loadConfig(config, (message) => this.logger.warn(`kr-serve: ${message}`));
      for (const [section, value] of Object.entries(next)) {
        const old = this.config[section as keyof Config];
        if (JSON.stringify(old) !== JSON.stringify(value)) report.needsRestart.push(section);
      }
    }
    if (isRuntimes) {
      const wire = await this.parts.client.call<{ changed: string[]; needs_restart: string[] }>(
        'reload_config', {});
      report.changed.push(...wire.changed);
      report.needsRestart.push(...wire.needs_restart);
    }
    return report;
  }

  async healthCheck(): Promise<HealthStatus> {
    const { supervisor, models, streams, breakers } = this.parts;
    const health: HealthStatus = {
      status: 'healthy', uptime: performance.now() - this.createdAt,
      activeStreams: streams.nActive, loadedModels: models.nReady,
      runtime: { status: 'running' },
    };
    const pid = supervisor.live?.transport.pid;
    if (pid !== undefined) health.runtime = { pid, status: 'running' };
    if (supervisor.live === undefined) {
      const isStarting = supervisor.status === 'starting';
      health.runtime = { status: supervisor.status === 'error' ? 'crashed' : 'stopped' };
      health.status = isStarting ? 'degraded' : 'unhealthy';
      return health;
    }
    try {
      const state = await this.parts.client.call<RuntimeState>('runtime/state', {},
        { timeoutMs: HEALTH_TIMEOUT_MS, isInternal: true });
      health.stateErrors = models.reconcile(state.loaded_models);
    } catch (error) {
      health.stateErrors = [toEngineError(error).message];
    }
    health.stateConsistent = health.stateErrors.length === 0;
    const isDegraded = !health.stateConsistent || breakers.anyOpen
      || streams.nActive > STREAMS_DEGRADED;
    if (isDegraded) health.status = 'degraded';
    return health;
  }

  async getCacheStats(): Promise<ModelCacheStats> {
    const { models } = this.parts;
    return {
      loadedModels: models.nReady, maxModels: this.config.model.max_loaded_models,
      cacheEnabled: true, models: models.recent(),
    };
  }

  async getArtifactCacheHealth(): Promise<CacheHealth> {
    return artifactCacheHealth(this.options, this.config);
  }

  getBatchStats(): BatchStats | undefined {
    return this.config.batch_queue.enabled ? this.parts.queues.stats() : undefined;
  }

  resetBatchStats(): void {
    this.parts.queues.resetStats();
  }

  async flushBatches(): Promise<void> {
    await this.parts.queues.flush();
  }

  getStreamMetrics(): StreamMetrics {
    return this.parts.streams.metrics();
  }

  getReuseStats(): ReuseStats {
    const { coalescer, cache } = this.parts.reuse;
    return { coalescing: coalescer.stats(), responseCache: cache.stats() };
  }

  getQosReport(): QosReport {
    return this.parts.qos.report();
  }

  // ---- refused by name ----

  async loadVisionModel(_options: LoadVisionModelOptions): Promise<VisionModelHandle> {
    throw new EngineClientError('MethodNotFound', 'loadVisionModel: vision is not built');
  }

  async* createVisionGenerator(_params: VisionGeneratorParams, _options?: CreateGeneratorOptions):
  AsyncGenerator<VisionGeneratorChunk, void> {
    throw new EngineClientError('MethodNotFound', 'createVisionGenerator: vision is not built');
  }

  // ---- the end ----

  shutdown(): Promise<void> {
    this.stopping ??= this.stop().finally(() => {
      this.stopping = undefined;
    });
    return this.stopping;
  }

  dispose(): Promise<void> {
    return this.shutdown();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shutdown();
  }

  private async stop(): Promise<void> {
    const { supervisor, client, streams, models, queues, qos, reuse } = this.parts;
    const error = new EngineClientError('Cancelled', 'the engine was shut down');
    qos.stop();
    models.clear();
    const stopped = supervisor.stop();
    client.end(error);
    streams.end(error);
    queues.cleanup(error);
    await stopped;
    reuse.cache.clear();
    await this.telemetry?.shutdown();
  }

  private makeTelemetry(): TelemetryManager | undefined {
    const { telemetry } = this.config;
    if (!telemetry.enabled) return undefined;
    const { hooks, manager } = createTelemetryBridge({
      enabled: true, serviceName: telemetry.service_name,
      prometheusPort: telemetry.prometheus_port, exportIntervalMs: telemetry.export_interval_ms,
      logger: this.logger,
    });
    this.announcer.add(hooks);
    return manager;
  }

  /** A call that waited for its turn while the runtime died meets a new one without the model: it
   * waits for the model, and is made again. */
  private async holding<T>(model: string, run: () => Promise<T>): Promise<T> {
    for (let isAgain = false; ; isAgain = true) {
      const release = await this.parts.models.acquire(model);
      try {
        return await run();
      } catch (error) {
        const state = this.parts.models.get(model)?.state;
        const isMissing = (error as EngineClientError).code === 'ModelNotLoaded';
        if (isAgain || !isMissing || state === undefined || state === 'failed') throw error;
      } finally {
        release();
      }
    }
  }

  // ---- events ----

  override on<K extends keyof EngineEvents>(event: K, listener: EngineListener<K>): this {
    return super.on(event, listener as (...args: unknown[]) => void);
  }

  override once<K extends keyof EngineEvents>(event: K, listener: EngineListener<K>): this {
    return super.once(event, listener as (...args: unknown[]) => void);
  }

  override off<K extends keyof EngineEvents>(event: K, listener: EngineListener<K>): this {
    return super.off(event, listener as (...args: unknown[]) => void);
  }
}

addSnakeNames(Engine.prototype);

/** An engine whose runtime runs. */
export async function createEngine(options?: EngineOptions): Promise<Engine> {
  const engine = new Engine(options);
  try {
    await engine.start();
  } catch (error) {
    await engine.shutdown();
    throw error;
  }
  return engine;
}
