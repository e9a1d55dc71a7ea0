// From what an engine tells to the metrics. Nothing is counted before the manager has started.

import type { TelemetryHooks } from './hooks.js';
import { type TelemetryConfig, TelemetryManager } from './manager.js';
import type { TelemetryMetrics } from './metrics.js';

export interface TelemetryBridge {
  /** For createEngine({ telemetry: { enabled: true, hooks } }). */
  hooks: Required<TelemetryHooks>;
  /** To be started and shut down by whoever made the bridge. */
  manager: TelemetryManager;
}

export function createTelemetryBridge(config: TelemetryConfig): TelemetryBridge {
  const manager = new TelemetryManager(config);
  return { manager, hooks: hooksOf(() => manager.metrics) };
}

export function hooksOf(metrics: () => TelemetryMetrics | undefined): Required<TelemetryHooks> {
  return {
    ...modelHooks(metrics), ...generationHooks(metrics), ...callHooks(metrics),
    onQosEvaluated(broken) {
      metrics()?.qosEvaluations.add(1);
      for (const { policy, metric } of broken) metrics()?.qosViolations.add(1, { policy, metric });
    },
  };
}

type Metrics = () => TelemetryMetrics | undefined;

function modelHooks(metrics: Metrics) {
  return {
    onModelLoaded: ((handle) => {
      const labels = { model: handle.descriptor.id, type: handle.draft ? 'draft' : 'text' };
      metrics()?.modelsLoaded.add(1, labels);
      const { loadTimeMs } = handle.metadata;
      if (loadTimeMs !== undefined) metrics()?.modelLoadDuration.record(loadTimeMs, labels);
    }) satisfies TelemetryHooks['onModelLoaded'],
    onModelUnloaded(model: string) {
      metrics()?.modelsUnloaded.add(1, { model });
    },
  };
}

function generationHooks(metrics: Metrics) {
  return {
    onGenerationCompleted: ((stats) => {
      const labels = { model: stats.modelId ?? 'unknown' };
      metrics()?.tokensGenerated.add(stats.tokensGenerated, labels);
      if (stats.totalTime !== undefined) {
        metrics()?.generationDuration.record(stats.totalTime * 1000, labels);
      }
    }) satisfies TelemetryHooks['onGenerationCompleted'],
    onGenerationFailed: (({ modelId, code, tokensGenerated, durationMs }) => {
      const labels = { model: modelId };
      metrics()?.tokensGenerated.add(tokensGenerated, labels);
      metrics()?.generationDuration.record(durationMs, labels);
      metrics()?.generationErrors.add(1, { ...labels, code });
    }) satisfies TelemetryHooks['onGenerationFailed'],
    onError: ((error) => {
      metrics()?.errorsTotal.add(1, { code: error.code, type: error.name });
    }) satisfies TelemetryHooks['onError'],
  };
}

function callHooks(metrics: Metrics) {
  // Calls that were under way before the manager started were not counted; nor may their ends be.
  const counted = new Map<string, number>();
  const move = (method: string, by: number) => {
    const n = (counted.get(method) ?? 0) + by;
    if (n < 0 || metrics() === undefined) return;
    counted.set(method, n);
    metrics()?.ipcRequestsInFlight.add(by, { method });
  };
  return {
    onIpcRequestStarted(method: string) {
      move(method, 1);
    },
    onIpcRequestFinished(method: string, durationMs: number, code?: string) {
      move(method, -1);
      metrics()?.ipcRequestsTotal.add(1, { method, status: code ?? 'ok' });
      metrics()?.ipcRequestDuration.record(durationMs, { method });
    },
    onBatchDispatched: (({ partitionKey, batchSize, targetBatchSize }) => {
      const labels = { operation: partitionKey };
      metrics()?.batchOperationsTotal.add(1, labels);
      metrics()?.batchSizeHistogram.record(batchSize, labels);
      metrics()?.batchEfficiency.record(Math.min(batchSize / targetBatchSize, 1), labels);
    }) satisfies TelemetryHooks['onBatchDispatched'],
    onRetry(method: string) {
      metrics()?.retryAttemptsTotal.add(1, { method });
    },
    onCircuitBreakerStateChange(circuit: string, from: string, to: string) {
      metrics()?.circuitBreakerStateChanges.add(1, { circuit, from, to });
    },
  };
}
