// What an engine tells whoever measures it. Every hook is optional and may not throw; none is called
// for each token, so that measuring does not make an engine stream what nobody looks at.

import type { BatchDispatch, QosViolation } from '../services/index.js';

/** The fields of the public types that are looked at here. */
export interface LoadedModel {
  readonly descriptor: { readonly id: string };
  readonly draft?: boolean | undefined;
  readonly metadata: { readonly loadTimeMs?: number | undefined };
}

export interface CompletedGeneration {
  readonly tokensGenerated: number;
  /** Seconds. */
  readonly totalTime?: number | undefined;
  readonly modelId?: string | undefined;
}

export interface FailedGeneration {
  readonly modelId: string;
  readonly code: string;
  readonly tokensGenerated: number;
  readonly durationMs: number;
}

export interface TelemetryHooks {
  onModelLoaded?(handle: LoadedModel): void;
  onModelUnloaded?(modelId: string): void;
  onGenerationCompleted?(stats: CompletedGeneration): void;
  /** A generation that ended with an error: also a time limit, not one that was cancelled. */
  onGenerationFailed?(failure: FailedGeneration): void;
  onError?(error: { readonly code: string; readonly name: string }): void;
  onBatchDispatched?(dispatch: BatchDispatch): void;
  onIpcRequestStarted?(method: string): void;
  /** Once for each one started; code: of its error. */
  onIpcRequestFinished?(method: string, durationMs: number, code?: string): void;
  onRetry?(method: string): void;
  onCircuitBreakerStateChange?(circuit: string, from: string, to: string): void;
  onQosEvaluated?(broken: readonly QosViolation[]): void;
}
