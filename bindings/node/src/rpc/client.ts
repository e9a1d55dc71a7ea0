// Calls of the engine to whatever runtime is alive: breaker, retry and observation around a
// connection. Only calls that change nothing are asked again, and only where the first attempt
// cannot have done anything or ran out of the default time: a call that was lost with the runtime
// fails at once.
import { CircuitBreakerOpenError, EngineClientError, TimeoutError, cancelled } from '../errors.js';
import type { CircuitBreakers } from './breaker.js';
import type { Params, RpcConnection } from './connection.js';

export interface RetryOptions {
  maxAttempts: number;
  initialDelayMs: number;
  multiplier: number;
  maxDelayMs: number;
  jitter: number;
}

export interface RpcObserver {
  started?(method: string): void;
  finished?(method: string, durationMs: number, error?: EngineClientError): void;
  retried?(method: string): void;
}

export interface ClientOptions {
  connect: () => Promise<RpcConnection>;
  breakers: CircuitBreakers;
  retry: RetryOptions;
  timeoutMs: number;
  noteSuccess: () => void;
  observer?: RpcObserver;
}

export interface RequestOptions {
  /** The circuit is that of the method and this. */
  model?: string | undefined;
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
  isUrgent?: boolean;
  /** Of the engine's own accord: its success does not show that the runtime is of use. */
  isInternal?: boolean;
}

const READS: ReadonlySet<string> = new Set([
  'runtime/info', 'runtime/state', 'runtime/telemetry', 'list_models', 'tokenize', 'detokenize',
  'count_tokens', 'check_draft', 'batch_tokenize', 'batch_check_draft',
]);
const FAULTS: ReadonlySet<string> = new Set([
  'TransportError', 'InternalError', 'RuntimeError', 'Timeout',
]);
const KR_E_BUSY = 14;

/** The message never left: nothing can have been done. */
function isUnsent(error: EngineClientError): boolean {
  return (error.details as { unsent?: boolean } | undefined)?.unsent === true;
}

export function isBusy(error: EngineClientError): boolean {
  const details = error.details as { data?: { kr_status?: number } } | undefined;
  return error.code === 'ServerError' && details?.data?.kr_status === KR_E_BUSY;
}

export class RpcClient {
  /** Ends of the pauses between two attempts. */
  private readonly pauses = new Set<(error: EngineClientError) => void>();

  constructor(private readonly options: ClientOptions) {}

  /** The engine ends: what would be asked again is not. */
  end(error: EngineClientError): void {
    for (const end of [...this.pauses]) end(error);
  }

  async call<T>(method: string, params: Params, request: RequestOptions = {}): Promise<T> {
    const { retry, observer } = this.options;
    const nAttempts = READS.has(method) ? retry.maxAttempts : 1;
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.attempt<T>(method, params, request);
      } catch (error) {
        const again = attempt < nAttempts && this.mayRetry(error, request);
        if (!again || request.signal?.aborted) throw error;
        observer?.retried?.(method);
        await this.pause(this.pauseMs(attempt), method, request.signal);
      }
    }
  }

  private pause(ms: number, method: string, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const over = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        this.pauses.delete(end);
        resolve();
      };
      const end = (error: EngineClientError): void => {
        reject(error);
        over();
      };
      const onAbort = (): void => end(cancelled(method, signal?.reason));
      const timer = setTimeout(over, ms);
      signal?.addEventListener('abort', onAbort, { once: true });
      this.pauses.add(end);
    });
  }

  private pauseMs(attempt: number): number {
    const { initialDelayMs, multiplier, maxDelayMs, jitter } = this.options.retry;
    const base = Math.min(initialDelayMs * multiplier ** (attempt - 1), maxDelayMs);
    return base * (1 + jitter * (2 * Math.random() - 1));
  }

  private mayRetry(error: unknown, request: RequestOptions): boolean {
    if (!(error instanceof EngineClientError)) return false;
    if (error instanceof TimeoutError) return request.timeoutMs === undefined;
    return isUnsent(error) || isBusy(error);
  }

  private async attempt<T>(method: string, params: Params, request: RequestOptions): Promise<T> {
    const { breakers, observer } = this.options;
    const circuit = request.model === undefined ? method : `${method}:${request.model}`;
    this.enter(circuit, method);
    observer?.started?.(method);
    const began = performance.now();
    let connection: RpcConnection | undefined;
    try {
      connection = await this.options.connect();
      const result = await connection.call(method, params, {
        timeoutMs: request.timeoutMs ?? this.options.timeoutMs, signal: request.signal,
        isUrgent: request.isUrgent ?? false,
      });
      breakers.succeed(circuit);
      if (request.isInternal !== true) this.options.noteSuccess();
      observer?.finished?.(method, performance.now() - began);
      return result as T;
    } catch (thrown) {
      const error = thrown as EngineClientError;
      this.judge(circuit, error, request, connection);
      observer?.finished?.(method, performance.now() - began, error);
      throw error;
    }
  }

  private enter(circuit: string, method: string): void {
    try {
      this.options.breakers.enter(circuit);
    } catch (error) {
      if (!(error instanceof CircuitBreakerOpenError)) throw error;
      throw new EngineClientError('TransportError', error.message, {
        method, attempts: 0, retryAfterMs: error.retryAfterMs, circuitState: error.state,
        circuit: error.circuit,
      }, error);
    }
  }

  /** A time limit that the caller chose says nothing of the runtime; nor does a cancelled call. */
  private judge(circuit: string, error: EngineClientError, request: RequestOptions,
    connection: RpcConnection | undefined): void {
    const { breakers } = this.options;
    const isOwnLimit = error instanceof TimeoutError && request.timeoutMs !== undefined;
    if (error.code === 'Cancelled' || isOwnLimit || connection === undefined) {
      breakers.leave(circuit);
    } else if (FAULTS.has(error.code)) {
      breakers.fail(circuit, connection.isLost ? connection : undefined);
    } else {
      breakers.succeed(circuit);
      this.options.noteSuccess();
    }
  }
}
