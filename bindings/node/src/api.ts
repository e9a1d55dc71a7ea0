// The contract: every public method of an engine. A type-level test pins the class to these keys,
// and each camelCase name to its snake_case twin.
import type { Named } from './aliases.js';
import type {
  BatchStats, CoalescerStats, QosReport, ResponseCacheStats,
} from './services/index.js';
import type {
  CacheHealth, ChatMessage, ChatParams, CompatibilityReport, CountTokensRequest,
  CreateGeneratorOptions, DetokenizeRequest, DetokenizeResponse, EmbedRequest, EmbedResponse,
  EngineEvents, GeneratorChunk, GeneratorParams, HealthStatus, LoadModelOptions,
  LoadVisionModelOptions, ModelCacheStats, ModelHandle, ReloadReport, RuntimeInfo, StreamMetrics,
  TelemetryReport, TokenizeOptions, TokenizeRequest, TokenizeResponse, VisionGeneratorChunk,
  VisionGeneratorParams, VisionModelHandle,
} from './types.js';

export const ENGINE_API_SNAPSHOT_VERSION = 'phase-0';

/** Generations that were answered without computing them again. */
export interface ReuseStats {
  coalescing: CoalescerStats;
  responseCache: ResponseCacheStats;
}

/** The methods in camelCase. */
export interface EngineMethods {
  loadModel(options: Named<LoadModelOptions> | string): Promise<ModelHandle>;
  loadDraftModel(options: Named<LoadModelOptions> | string): Promise<ModelHandle>;
  unloadModel(id: string): Promise<void>;
  unloadDraftModel(id?: string): Promise<void>;
  isDraftModelCompatible(primaryId: string, draftId: string): Promise<CompatibilityReport>;
  createGenerator(params: Named<GeneratorParams>, options?: CreateGeneratorOptions):
  AsyncGenerator<GeneratorChunk, void>;
  generate(params: Named<GeneratorParams>, options?: CreateGeneratorOptions): Promise<string>;
  chat(params: Named<ChatParams> | ChatMessage[], options?: CreateGeneratorOptions): Promise<string>;
  cancel(streamId: string): Promise<boolean>;
  tokenize(request: Named<TokenizeRequest>, options?: TokenizeOptions): Promise<TokenizeResponse>;
  detokenize(request: Named<DetokenizeRequest>): Promise<DetokenizeResponse>;
  countTokens(request: Named<CountTokensRequest>): Promise<number>;
  embed(request: Named<EmbedRequest>): Promise<EmbedResponse>;
  listModels(): ModelHandle[];
  getModelInfo(id: string): ModelHandle | undefined;
  getRuntimeInfo(): Promise<RuntimeInfo>;
  getTelemetryReport(): Promise<TelemetryReport>;
  reloadConfig(): Promise<ReloadReport>;
  healthCheck(): Promise<HealthStatus>;
  warmupModel(options: Named<LoadModelOptions> | string): Promise<void>;
  getCacheStats(): Promise<ModelCacheStats>;
  getArtifactCacheHealth(): Promise<CacheHealth>;
  loadVisionModel(options: LoadVisionModelOptions): Promise<VisionModelHandle>;
  createVisionGenerator(params: VisionGeneratorParams, options?: CreateGeneratorOptions):
  AsyncGenerator<VisionGeneratorChunk, void>;
  getBatchStats(): BatchStats | undefined;
  resetBatchStats(): void;
  flushBatches(): Promise<void>;
  getStreamMetrics(): StreamMetrics;
  getReuseStats(): ReuseStats;
  getQosReport(): QosReport;
  shutdown(): Promise<void>;
  dispose(): Promise<void>;
}

/** loadModel -> load_model, at the level of types. */
export type SnakeCase<Name extends string> = Name extends `${infer Head}${infer Tail}`
  ? Head extends Lowercase<Head> ? `${Head}${SnakeCase<Tail>}`
    : `_${Lowercase<Head>}${SnakeCase<Tail>}`
  : Name;

export type SnakeMethods = {
  [Name in keyof EngineMethods as SnakeCase<Name>]: EngineMethods[Name];
};

export type EngineListener<K extends keyof EngineEvents> = (payload: EngineEvents[K]) => void;

export interface EngineEventMethods {
  on<K extends keyof EngineEvents>(event: K, listener: EngineListener<K>): this;
  once<K extends keyof EngineEvents>(event: K, listener: EngineListener<K>): this;
  off<K extends keyof EngineEvents>(event: K, listener: EngineListener<K>): this;
}

export interface EnginePublicAPI extends EngineMethods, SnakeMethods, EngineEventMethods {}
