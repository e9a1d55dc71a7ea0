// Circuit breakers, one for each method and model. Only faults of transport and runtime count,
// never what a caller did wrong; one crash counts once, however many calls it took along.
import { CircuitBreakerOpenError } from '../errors.js';
import type { CircuitState } from '../errors.js';

export interface BreakerOptions {
  failureThreshold: number;
  failureWindowMs: number;
  recoveryTimeoutMs: number;
  successThreshold: number;
  now?: () => number;
  onChange?: (circuit: string, from: CircuitState, to: CircuitState) => void;
}

const CIRCUITS_MAX = 1024;

class Circuit {
  state: CircuitState = 'closed';
  failures = 0;
  successes = 0;
  lastFailure = 0;
  openedAt = 0;
  isProbing = false;
  lastIncident: unknown;
}

export class CircuitBreakers {
  private readonly circuits = new Map<string, Circuit>();
  private readonly now: () => number;

  constructor(private readonly options: BreakerOptions) {
    this.now = options.now ?? (() => performance.now());
  }

  /** Throws when the circuit is open; else the call may be made, and says how it went. */
  enter(name: string): void {
    const circuit = this.circuits.get(name);
    if (circuit === undefined || circuit.state === 'closed') return;
    const elapsed = this.now() - circuit.openedAt;
    if (circuit.state === 'open') {
      const rest = this.options.recoveryTimeoutMs - elapsed;
      if (rest > 0) throw new CircuitBreakerOpenError(name, 'open', rest);
      this.change(name, circuit, 'half-open');
      circuit.successes = 0;
    }
    if (circuit.isProbing) throw new CircuitBreakerOpenError(name, 'half-open', 0);
    circuit.isProbing = true;
  }

  /** The runtime answered, be it with an error of the caller's. */
  succeed(name: string): void {
    const circuit = this.circuits.get(name);
    if (circuit === undefined) return;
    circuit.isProbing = false;
    circuit.failures = 0;
    if (circuit.state !== 'half-open') {
      if (circuit.state === 'closed') this.circuits.delete(name);
      return;
    }
    circuit.successes += 1;
    if (circuit.successes < this.options.successThreshold) return;
    this.change(name, circuit, 'closed');
    this.circuits.delete(name);
  }

  /** `incident`: what took the call along; failures of one incident count once. */
  fail(name: string, incident?: unknown): void {
    const circuit = this.circuits.get(name) ?? this.add(name);
    circuit.isProbing = false;
    if (incident !== undefined && circuit.lastIncident === incident) return;
    circuit.lastIncident = incident;
    const now = this.now();
    if (now - circuit.lastFailure > this.options.failureWindowMs) circuit.failures = 0;
    circuit.lastFailure = now;
    circuit.failures += 1;
    const opens = circuit.state === 'half-open'
      || (circuit.state === 'closed' && circuit.failures >= this.options.failureThreshold);
    if (!opens) return;
    circuit.openedAt = now;
    this.change(name, circuit, 'open');
  }

  /** The call ended without saying anything of the runtime (it was cancelled). */
  leave(name: string): void {
    const circuit = this.circuits.get(name);
    if (circuit !== undefined) circuit.isProbing = false;
  }

  get anyOpen(): boolean {
    for (const circuit of this.circuits.values()) if (circuit.state !== 'closed') return true;
    return false;
  }

  private add(name: string): Circuit {
    if (this.circuits.size >= CIRCUITS_MAX) {
      const [oldest] = this.circuits.keys();
      this.circuits.delete(oldest as string);
    }
    const circuit = new Circuit();
    this.circuits.set(name, circuit);
    return circuit;
  }

  private change(name: string, circuit: Circuit, to: CircuitState): void {
    const from = circuit.state;
    circuit.state = to;
    this.options.onChange?.(name, from, to);
  }
}
