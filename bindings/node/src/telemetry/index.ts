// Metrics of an engine for OpenTelemetry and Prometheus.

export { createTelemetryBridge } from './bridge.js';
export type { TelemetryBridge } from './bridge.js';
export type {
  CompletedGeneration, FailedGeneration, LoadedModel, TelemetryHooks,
} from './hooks.js';
export { TelemetryManager, getMetrics } from './manager.js';
export type { TelemetryConfig } from './manager.js';
export type { CounterMetric, HistogramMetric, TelemetryMetrics } from './metrics.js';
