// The types of the public surface. Names, fields and defaults are a contract (docs/kr-serve.md): a
// field that is not listed as working is refused by name, never accepted and ignored.
import type {
  Aliases, DETOKENIZE, EMBED, GENERATOR, LOAD, TOKENIZE,
} from './aliases.js';
import type { EngineClientError, EngineErrorObject } from './errors.js';
import type { ConfigInput } from './config.js';
import type { QosViolation } from './services/index.js';

// ---- models -----------------------------------------------------------------------------------

export type Quantization = 'none' | 'int8' | 'int4';
export type Modality = 'text' | 'vision' | 'multimodal';

export interface ModelDescriptor {
  id: string;
  variant?: string;
  source: 'huggingface' | 'local';
  path?: string;
  tokenizer?: { type: string; vocabSize: number; specialTokens?: Record<string, string> };
  modality: Modality;
  family: 'kr' | 'mlx-lm' | 'mlx-vlm';
}

export interface LoadModelFields {
  /** An alias, a path, or an id whose file `localPath` names. */
  model: string | ModelDescriptor;
  draft?: boolean;
  /** A file is what it is: only 'main'. */
  revision?: string;
  /** A file is what it is: only 'none'. */
  quantization?: Quantization;
  /** Defaults of every generation with this model. */
  parameters?: Partial<GeneratorParams>;
  trustRemoteCode?: boolean;
  localPath?: string;
  /** Tokens of context; the model's own, at most the runtime's limit, when absent. */
  contextLength?: number;
}
export interface LoadModelOptions
  extends LoadModelFields, Aliases<LoadModelFields, typeof LOAD> {
  [key: string]: unknown;
}

export interface ModelMetadata {
  parameterCount: number;
  dtype: string;
  isVisionModel: boolean;
  tokenizerType?: string;
  memoryUsage: number;
  quantization: Quantization;
  revision: string;
  draft: boolean;
  architecture: string;
  vocabSize: number;
  contextLengthTrained: number;
  embeddingLength: number;
  hasChatTemplate: boolean;
  cachedPath: string;
  loadTimeMs: number;
  /** Why the state is 'failed'. */
  error?: EngineErrorObject;
}

export interface ModelHandle {
  readonly descriptor: ModelDescriptor;
  readonly state: 'loading' | 'ready' | 'failed';
  readonly contextLength: number;
  readonly draft?: boolean;
  readonly metadata: Partial<ModelMetadata>;
}

export interface DraftSide {
  id: string;
  vocabSize: number | null;
  parameterCount: number;
  architecture: string;
}

export interface CompatibilityReport {
  compatible: boolean;
  errors: string[];
  warnings: string[];
  details: {
    primaryModel: DraftSide;
    draftModel: DraftSide;
    performanceEstimate: { expectedSpeedup: string; sizeRatio: string; recommendation: string };
  };
}

// ---- generation -------------------------------------------------------------------------------

export type ChatRole = 'system' | 'user' | 'assistant' | 'tool' | 'developer';
export interface ChatMessage {
  role: ChatRole | (string & {});
  content: string;
}

export type PromptInput =
  | string
  | { template: string; variables?: Record<string, unknown> }
  | { tokens: number[] };

export interface GeneratorFields {
  model: string;
  /** One of prompt, promptTokens and messages. */
  prompt?: PromptInput;
  promptTokens?: number[];
  /** Rendered with the model's own chat template. */
  messages?: ChatMessage[];
  maxTokens?: number;
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  typicalP?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  repetitionPenalty?: number;
  logitBias?: Record<string, number>;
  stopSequences?: string[];
  stopTokenIds?: number[];
  seed?: number;
  /** false: the whole text arrives as one chunk. */
  streaming?: boolean;
  logprobs?: boolean;
  topLogprobs?: number;
  ignoreEos?: boolean;
  cachePrompt?: boolean;
  /** Refused: structured output is not built. */
  structured?: { schema: unknown; format: 'json' | 'yaml' };
  /** Refused: vision is not built. */
  multimodal?: { images: string[]; imageFormat: 'base64' | 'url' | 'path' };
  /** Refused: drafts while generating are not built. */
  draftModel?: string;
  /** Refused: there is no router that would look at hints. */
  hints?: Record<string, unknown>;
}
export interface GeneratorParams
  extends GeneratorFields, Aliases<GeneratorFields, typeof GENERATOR> {}

export type Priority = 'urgent' | 'default' | 'background';

export interface CreateGeneratorOptions {
  signal?: AbortSignal;
  streamId?: string;
  timeoutMs?: number;
  priority?: Priority;
  /** Adds `cumulativeText` to each token chunk; built here, never sent. */
  cumulativeText?: boolean;
}

export type FinishReason =
  | 'eos' | 'stop' | 'length' | 'cancelled' | 'timeout' | 'shutdown' | 'error';

export interface GenerationStats {
  tokensGenerated: number;
  tokensPerSecond: number;
  /** Seconds. */
  timeToFirstToken: number;
  /** Seconds. */
  totalTime?: number;
  /** Not set: drafts while generating are not built. */
  draftTokensAccepted?: number;
  modelId?: string;
  promptTokens?: number;
  cachedTokens?: number;
  finishReason?: FinishReason;
}

export interface TopLogprob {
  /** Not set by kr, which names the token by its id. */
  readonly token?: string;
  readonly tokenId?: number;
  readonly logprob: number;
}

export interface TokenChunk {
  readonly type: 'token';
  readonly token: string;
  readonly tokenId?: number;
  readonly logprob?: number;
  readonly topLogprobs?: readonly TopLogprob[];
  readonly isFinal?: boolean;
  readonly cumulativeText?: string;
}
export interface MetadataChunk {
  readonly type: 'metadata';
  readonly stats: GenerationStats;
}
export interface ErrorChunk {
  readonly type: 'error';
  readonly error: { code?: string; message: string; details?: unknown };
}
export type GeneratorChunk = TokenChunk | MetadataChunk | ErrorChunk;

export type ChatParams = Omit<GeneratorParams,
  'prompt' | 'promptTokens' | 'prompt_tokens' | 'messages'> & {
  messages: ChatMessage[];
};

// ---- text -------------------------------------------------------------------------------------

export interface TokenizeFields {
  model: string;
  text: string;
  addBos?: boolean;
}
export interface TokenizeRequest
  extends TokenizeFields, Aliases<TokenizeFields, typeof TOKENIZE> {}
export interface TokenizeResponse {
  tokens: number[];
  tokenStrings?: string[];
}
export interface TokenizeOptions {
  signal?: AbortSignal;
  timeoutMs?: number;
  priority?: Priority;
}
export interface DetokenizeFields {
  model: string;
  tokens: number[];
  skipSpecialTokens?: boolean;
}
export interface DetokenizeRequest
  extends DetokenizeFields, Aliases<DetokenizeFields, typeof DETOKENIZE> {}
export interface DetokenizeResponse {
  text: string;
}
export interface CountTokensFields {
  model: string;
  text?: string;
  messages?: ChatMessage[];
  addBos?: boolean;
}
export interface CountTokensRequest
  extends CountTokensFields, Aliases<CountTokensFields, typeof TOKENIZE> {}
export interface EmbedFields {
  model: string;
  input: string | string[];
  pooling?: 'mean' | 'last';
  normalize?: boolean;
  timeoutMs?: number;
}
export interface EmbedRequest
  extends EmbedFields, Aliases<EmbedFields, typeof EMBED> {}
export interface EmbedResponse {
  embeddings: number[][];
  dimensions: number;
  promptTokens: number;
}

// ---- runtime ----------------------------------------------------------------------------------

export interface RuntimeInfo {
  version: string;
  protocol: string;
  protocolVersion: number;
  capabilities: string[];
  isa: string;
  limits: Record<string, number>;
  memory?: { rss: number; vms: number };
  transport: 'child' | 'in-process';
  /** Of the process that runs the models: the child, or this one. */
  pid?: number;
  /** Of the ancestor: never set, there is no MLX here. */
  mlxVersion?: string;
  /** Of the ancestor: always false. */
  mlxSupported?: boolean;
}

export interface HealthStatus {
  status: 'healthy' | 'degraded' | 'unhealthy';
  uptime: number;
  activeStreams: number;
  loadedModels: number;
  runtime?: { pid?: number; status: 'running' | 'stopped' | 'crashed' };
  stateConsistent?: boolean;
  stateErrors?: string[];
}

export interface ModelCacheStats {
  loadedModels: number;
  maxModels: number;
  cacheEnabled: boolean;
  models: { modelId: string; lastAccess: number }[];
}

export interface CacheConfig {
  enabled: boolean;
  cacheDir: string;
  maxSizeBytes: number;
  maxAgeDays: number;
  evictionPolicy: 'lru' | 'lfu' | 'fifo';
  preloadModels: string[];
  enableCompression?: boolean;
  validateOnStartup?: boolean;
}

export interface CacheHealth {
  healthy: boolean;
  sizeBytes: number;
  entryCount: number;
  /** Not set: the runtime does not count the hits of its packed weights. */
  hitRate?: number;
  nearLimit: boolean;
  corruptedEntries: string[];
  lastValidated?: number;
}

export interface StreamMetrics {
  timestamp: number;
  activeStreams: number;
  totalStreams: number;
  completedStreams: number;
  cancelledStreams: number;
  failedStreams: number;
  /** Milliseconds. */
  averageTTFT: number;
  /** Tokens a second, mean of the last 100 streams. */
  averageThroughput: number;
  currentLimit: number;
  waitingStreams: number;
  /** Of the limit, 0 to 1. */
  utilizationRate: number;
}

export interface LatencySummary {
  mean: number;
  min: number;
  max: number;
  p50: number;
  p95: number;
  p99: number;
}
/** Latencies in milliseconds, since the runtime's start. */
export interface TelemetryReport {
  enabled: boolean;
  samplingRate: number;
  generation: {
    calls: number;
    totalTokens: number;
    avgTokensPerCall: number;
    latencyMs: LatencySummary;
    throughput: { tokensPerSecond: number };
  };
  tokenization: { calls: number; latencyMs: LatencySummary };
  errors: { total: number; timeouts: number; errorRate: number };
  nativeOptimizations: Record<string, unknown>;
  /** Every metric of the engine by its own name. */
  engine: Record<string, unknown>;
}

export interface ReloadReport {
  success: boolean;
  changed: string[];
  needsRestart: string[];
}

// ---- vision: declared so that programs compile, refused by name --------------------------------

export interface ImageInput {
  source: string | Buffer;
  format?: 'png' | 'jpg' | 'jpeg' | 'webp' | 'bmp';
  metadata?: Record<string, unknown>;
}
export interface LoadVisionModelOptions {
  model: string;
  revision?: string;
  quantization?: { bits: 4 | 8; groupSize?: number };
  preprocessing?: Record<string, unknown>;
  config?: Record<string, unknown>;
}
export interface VisionModelHandle extends ModelHandle {
  readonly imageEncoder: 'clip' | 'vit' | 'siglip';
  readonly maxImageSize: number;
}
export interface VisionGeneratorParams extends Omit<GeneratorParams, 'multimodal'> {
  image: ImageInput | ImageInput[];
  visionConfig?: Record<string, unknown>;
}
export interface VisionGeneratorChunk {
  type: 'token' | 'metadata' | 'error' | 'image_processed';
  token?: string;
  logprob?: number;
  stats?: GenerationStats;
  error?: { code?: string; message: string; details?: unknown };
}

// ---- events and hooks -------------------------------------------------------------------------

export type RuntimeStatus = 'starting' | 'ready' | 'error' | 'stopped';
/** 'python_restart' is the ancestor's word for: the runtime was lost and has started anew. */
export type InvalidationReason = 'python_restart' | 'unload' | 'error';

export interface EngineEvents {
  'model:loaded': { modelId: string; handle: ModelHandle; timestamp: number };
  'model:unloaded': { modelId: string; timestamp: number };
  'model:invalidated': { modelId: string; reason: InvalidationReason; timestamp: number };
  'generation:started': {
    streamId: string; modelId: string; prompt: string; timestamp: number;
  };
  'generation:token': {
    streamId: string; token: string; logprob?: number; timestamp: number;
  };
  'generation:completed': { streamId: string; stats: GenerationStats; timestamp: number };
  error: { error: EngineErrorObject; context?: string; timestamp: number };
  'runtime:status': {
    status: RuntimeStatus; previousStatus?: RuntimeStatus; timestamp: number;
  };
  'qos:violation': { violation: QosViolation; timestamp: number };
}

export interface BatchDispatchInfo {
  partitionKey: string;
  batchSize: number;
  durationMs: number;
  queueWaitAvgMs: number;
  queueWaitP95Ms: number;
  priorityMix: Record<string, number>;
  targetBatchSize: number;
  activeStreams: number;
}

export interface GenerationFailure {
  modelId: string;
  code: string;
  tokensGenerated: number;
  durationMs: number;
}

/** A hook that throws is logged and stops nobody. */
export interface EngineHooks {
  onModelLoaded?(handle: ModelHandle): void;
  /** Also of one that was lost with the runtime. */
  onModelUnloaded?(modelId: string): void;
  /** Each token; makes generate() ask for single tokens. */
  onTokenGenerated?(token: string, stats: GenerationStats): void;
  onGenerationCompleted?(stats: GenerationStats): void;
  /** A generation that ended with an error: also a time limit, not one that was cancelled. */
  onGenerationFailed?(failure: GenerationFailure): void;
  onError?(error: EngineClientError): void;
  onBatchDispatched?(info: BatchDispatchInfo): void;
  onIpcRequestStarted?(method: string): void;
  /** Once for each that started; `code` is that of its error. */
  onIpcRequestFinished?(method: string, durationMs: number, code?: string): void;
  onRetry?(method: string): void;
  onCircuitBreakerStateChange?(circuit: string, from: string, to: string): void;
  onQosEvaluated?(broken: readonly QosViolation[]): void;
}

// ---- engine -----------------------------------------------------------------------------------

export interface RuntimeOptions {
  /** Options of `kr runtime`, for example ['--parallel', '8']. */
  args?: string[];
  /** Added to the environment of the child. */
  env?: Record<string, string>;
  /** Working folder of the child. */
  cwd?: string;
}

export interface EngineOptions {
  /** The program `kr`; else $KR_PATH, then `kr` of the PATH. */
  krPath?: string;
  /** 'child' (default): a crash of the runtime leaves this program alive. */
  transport?: 'child' | 'in-process';
  runtime?: RuntimeOptions;
  /** A JSON file, or its content. */
  config?: string | ConfigInput;
  /** Old name of cache.cacheDir. */
  cacheDir?: string;
  cache?: Partial<CacheConfig>;
  telemetry?: { enabled: boolean; hooks?: EngineHooks };
  /** Refused: no Python is involved. */
  pythonPath?: never;
  /** Refused: see krPath. */
  runtimePath?: never;
}

export interface Logger {
  debug(message: string): void;
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}
