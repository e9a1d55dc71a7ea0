// Identical calls that are under way at the same time share one execution. Each caller may leave by
// its own signal; the execution is aborted when all have left. What has ended is forgotten: keeping
// answers is the response cache's work.

import { type Clock, systemClock } from './clock.js';

export interface CoalescerOptions {
  enabled?: boolean;
  /** Executions that can be joined at once; more run by themselves. */
  maxEntries?: number;
  /** Callers of one execution. */
  maxSubscribers?: number;
  /** An execution older than this is not joined. */
  windowMs?: number;
  cancelledError: (reason: unknown) => Error;
  clock?: Clock;
}

export interface CoalescerStats {
  /** Calls that came. */
  requests: number;
  /** Executions that were started. */
  executions: number;
  /** Calls that joined one. */
  coalesced: number;
  inFlight: number;
}

interface Execution {
  promise: Promise<unknown>;
  controller: AbortController;
  startedAt: number;
  nSubscribers: number;
}

export class Coalescer {
  private readonly executions = new Map<string, Execution>();
  private readonly clock: Clock;
  private readonly counts = { requests: 0, executions: 0, coalesced: 0 };

  constructor(private readonly options: CoalescerOptions) {
    this.clock = options.clock ?? systemClock;
  }

  /** key: of the call, e.g. its fingerprint; equal keys must mean equal answers of one type. */
  run<T>(key: string, start: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (signal?.aborted) return Promise.reject(this.options.cancelledError(signal.reason));
    this.counts.requests++;
    const found = this.executions.get(key);
    if (found && this.isOpen(found)) {
      this.counts.coalesced++;
      return this.subscribe(key, found, signal) as Promise<T>;
    }
    return this.subscribe(key, this.begin(key, start), signal) as Promise<T>;
  }

  stats(): CoalescerStats {
    return { ...this.counts, inFlight: this.executions.size };
  }

  private isOpen(execution: Execution): boolean {
    return execution.nSubscribers < (this.options.maxSubscribers ?? 100)
      && this.clock.now() - execution.startedAt <= (this.options.windowMs ?? 5000);
  }

  private begin<T>(key: string, start: (signal: AbortSignal) => Promise<T>): Execution {
    this.counts.executions++;
    const controller = new AbortController();
    const execution: Execution = {
      controller, startedAt: this.clock.now(), nSubscribers: 0,
      promise: Promise.resolve(), // replaced at once
    };
    const isShared = (this.options.enabled ?? true)
      && (this.executions.has(key) || this.executions.size < (this.options.maxEntries ?? 1000));
    if (isShared) this.executions.set(key, execution);
    execution.promise = start(controller.signal).finally(() => this.forget(key, execution));
    execution.promise.catch(() => {}); // all subscribers may have left
    return execution;
  }

  private forget(key: string, execution: Execution): void {
    if (this.executions.get(key) === execution) this.executions.delete(key);
  }

  private subscribe(key: string, execution: Execution, signal?: AbortSignal): Promise<unknown> {
    execution.nSubscribers++;
    if (!signal) return execution.promise;
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        reject(this.options.cancelledError(signal.reason));
        if (--execution.nSubscribers > 0) return;
        this.forget(key, execution); // nobody may join what is being aborted
        execution.controller.abort(signal.reason);
      };
      signal.addEventListener('abort', onAbort, { once: true });
      execution.promise.then(resolve, reject)
        .finally(() => signal.removeEventListener('abort', onAbort));
    });
  }
}
