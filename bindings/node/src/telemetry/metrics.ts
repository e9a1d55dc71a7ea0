// The metrics, a row each. Names are those that Prometheus shows; the exporter adds none.

export type Labels = Record<string, string | number | boolean>;
export interface CounterMetric {
  add(value: number, labels?: Labels): void;
}
export interface HistogramMetric {
  record(value: number, labels?: Labels): void;
}

/** What OpenTelemetry's Meter offers and is used here. */
export interface MeterLike {
  createCounter(name: string, options: { description: string }): CounterMetric;
  createUpDownCounter(name: string, options: { description: string }): CounterMetric;
  createHistogram(name: string, options: {
    description: string; advice: { explicitBucketBoundaries: number[] };
  }): HistogramMetric;
}

const MS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 3e4, 1e5, 3e5];
const SIZES = [1, 2, 4, 8, 16, 32, 64];
const SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1];

export function createMetrics(meter: MeterLike) {
  const counter = (name: string, description: string) =>
    meter.createCounter(`kr_serve_${name}`, { description });
  const histogram = (name: string, bounds: number[], description: string) =>
    meter.createHistogram(`kr_serve_${name}`, {
      description, advice: { explicitBucketBoundaries: bounds },
    });
  return {
    modelsLoaded: counter('models_loaded_total', 'models loaded'),
    modelsUnloaded: counter('models_unloaded_total', 'models unloaded or lost'),
    modelLoadDuration: histogram('model_load_duration_ms', MS, 'time of a load, ms'),
    tokensGenerated: counter('tokens_generated_total', 'tokens of all generations'),
    generationDuration: histogram('generation_duration_ms', MS, 'time of a whole generation, ms'),
    generationErrors: counter('generation_errors_total', 'generations that ended with an error'),
    ipcRequestsTotal: counter('ipc_requests_total', 'calls of the runtime'),
    ipcRequestDuration: histogram('ipc_request_duration_ms', MS, 'time of a call, ms'),
    ipcRequestsInFlight: meter.createUpDownCounter('kr_serve_ipc_requests_in_flight',
      { description: 'calls of the runtime under way' }),
    batchOperationsTotal: counter('batch_operations_total', 'batches of several requests'),
    batchSizeHistogram: histogram('batch_size', SIZES, 'requests of a batch'),
    batchEfficiency: histogram('batch_efficiency', SHARES, 'size of a batch by what it may hold'),
    errorsTotal: counter('errors_total', 'errors that callers saw'),
    retryAttemptsTotal: counter('retry_attempts_total', 'calls made again'),
    circuitBreakerStateChanges: counter('circuit_breaker_state_changes_total',
      'circuits that opened, closed or let a probe through'),
    qosEvaluations: counter('qos_evaluations_total', 'evaluations of the QoS policies'),
    qosViolations: counter('qos_slo_violations_total', 'QoS policies found broken'),
  };
}

export type TelemetryMetrics = ReturnType<typeof createMetrics>;
