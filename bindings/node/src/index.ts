// kr-serve: the public surface. What is exported here is documented and tested.
export { Engine, createEngine } from './engine.js';
export type { EngineDependencies } from './engine.js';
export type { Aliases, Named } from './aliases.js';
export { ENGINE_API_SNAPSHOT_VERSION } from './api.js';
export type {
  EngineEventMethods, EngineListener, EngineMethods, EnginePublicAPI, ReuseStats, SnakeCase,
  SnakeMethods,
} from './api.js';
export {
  CircuitBreakerOpenError, ENGINE_ERROR_CODES, EngineClientError, JsonRpcError,
  PythonEnvironmentError, RuntimeNotFoundError, TimeoutError, isRetryable,
} from './errors.js';
export type {
  CircuitState, EngineErrorCode, EngineErrorObject,
} from './errors.js';
export * from './types.js';
export * from './helpers.js';
export {
  create_generator, generate, getEngine, load_model, shutdown, tokenize, unload_model,
} from './global.js';
export { MLXEngine, createMLXEngine } from './mlx-engine.js';
export type { MLXEngineOptions } from './mlx-engine.js';
export * from './validators.js';
export * from './normalize.js';
export { renderTemplate } from './template.js';
export * from './schemas.js';
export { ConfigSchema, loadConfig } from './config.js';
export type { Config, ConfigInput } from './config.js';
export { GenerationStatsCollector } from './services/index.js';
export type {
  BatchPerformance, BatchStats, CoalescerStats, CollectedStats, QosPolicy, QosReport, QosViolation,
  ResponseCacheStats,
} from './services/index.js';
export { TelemetryManager, createTelemetryBridge, getMetrics } from './telemetry/index.js';
export type {
  CounterMetric, HistogramMetric, TelemetryBridge, TelemetryConfig, TelemetryHooks,
  TelemetryMetrics,
} from './telemetry/index.js';
export type { SharedDescriptor, Transport } from './transport/transport.js';
