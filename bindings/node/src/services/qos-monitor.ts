// Watches the quality of service over a sliding window and acts when a policy is broken. It knows
// nothing of engines: generations are recorded, actions are functions that whoever builds it hands
// in; a policy that asks for an action nobody handed in is refused.

import { type Clock, systemClock } from './clock.js';
import { percentile } from './samples.js';

export type QosMetric = 'ttft' | 'latency_p95' | 'error_rate' | 'throughput';
export type QosAction = 'alert' | 'restart';

export interface QosPolicy {
  name: string;
  /** ttft: p95 of the first token's time, ms; latency_p95: of whole generations, ms; error_rate:
   * 0 to 1; throughput: tokens a second over all generations of the window. */
  metric: QosMetric;
  /** Broken above max or below min. */
  max?: number;
  min?: number;
  action: QosAction;
}

export interface QosSample {
  ttftMs?: number;
  latencyMs: number;
  tokens: number;
  isError: boolean;
}

export interface QosViolation {
  policy: string;
  metric: QosMetric;
  value: number;
  limit: number;
  action: QosAction;
  /** False while the policy cools down, or too many actions were taken. */
  isActedUpon: boolean;
}

export interface QosReport {
  windowMs: number;
  samples: number;
  /** null: nothing in the window to tell from. */
  metrics: Record<QosMetric, number | null>;
  evaluations: number;
  violations: number;
  actions: number;
  broken: QosViolation[];
}

export interface QosMonitorOptions {
  policies?: QosPolicy[];
  actions: Partial<Record<QosAction, (violation: QosViolation) => void>>;
  onEvaluated?: (broken: readonly QosViolation[]) => void;
  evaluateEveryMs?: number;
  windowMs?: number;
  /** Rest of a policy behind an action of it. */
  cooldownMs?: number;
  actionsMax?: number;
  actionsWindowMs?: number;
  clock?: Clock;
}

export const QOS_POLICIES: readonly QosPolicy[] = [
  { name: 'ttft', metric: 'ttft', max: 550, action: 'alert' },
  { name: 'errors', metric: 'error_rate', max: 0.05, action: 'alert' },
];

const SAMPLES_MAX = 10_000;

export class QosMonitor {
  private readonly policies: readonly QosPolicy[];
  private readonly clock: Clock;
  private readonly windowMs: number;
  private samples: (QosSample & { at: number })[] = [];
  private readonly actedAt = new Map<string, number>();
  private actionTimes: number[] = [];
  private counts = { evaluations: 0, violations: 0, actions: 0 };
  private broken: QosViolation[] = [];
  private cancelTimer: (() => void) | undefined;

  constructor(private readonly options: QosMonitorOptions) {
    this.clock = options.clock ?? systemClock;
    this.windowMs = options.windowMs ?? 60_000;
    this.policies = options.policies ?? QOS_POLICIES;
    const names = new Set<string>();
    for (const { name, action, max, min } of this.policies) {
      if (names.has(name)) throw new RangeError(`two QoS policies are called '${name}'`);
      names.add(name);
      if (!options.actions[action]) {
        throw new RangeError(`QoS policy '${name}': the action '${action}' is not there`);
      }
      if (max === undefined && min === undefined) {
        throw new RangeError(`QoS policy '${name}' has neither max nor min`);
      }
    }
  }

  /** A generation has ended. */
  record(sample: QosSample): void {
    const now = this.clock.now();
    // Nobody may ever ask for a report.
    while (this.samples[0] && now - this.samples[0].at > this.windowMs) this.samples.shift();
    this.samples.push({ ...sample, at: now });
    if (this.samples.length > SAMPLES_MAX) this.samples.splice(0, SAMPLES_MAX / 10);
  }

  start(): void {
    if (this.cancelTimer) return;
    const again = () => {
      this.cancelTimer = this.clock.after(this.options.evaluateEveryMs ?? 5000, () => {
        again(); // first: an action may stop the monitor
        this.evaluate();
      });
    };
    again();
  }

  stop(): void {
    this.cancelTimer?.();
    this.cancelTimer = undefined;
  }

  /** Looks at all policies now. */
  evaluate(): readonly QosViolation[] {
    const values = this.metrics();
    this.counts.evaluations++;
    this.broken = [];
    for (const policy of this.policies) {
      const value = values[policy.metric];
      if (value === null) continue;
      const limit = policy.max !== undefined && value > policy.max ? policy.max
        : policy.min !== undefined && value < policy.min ? policy.min : undefined;
      if (limit === undefined) continue;
      this.counts.violations++;
      const violation = {
        policy: policy.name, metric: policy.metric, value, limit, action: policy.action,
        isActedUpon: this.mayAct(policy.name),
      };
      this.broken.push(violation);
    }
    const broken = this.broken;
    this.options.onEvaluated?.(broken);
    for (const violation of broken) if (violation.isActedUpon) this.act(violation);
    return broken;
  }

  report(): QosReport {
    const metrics = this.metrics();
    return {
      windowMs: this.windowMs, samples: this.samples.length, metrics, ...this.counts,
      broken: [...this.broken],
    };
  }

  private metrics(): Record<QosMetric, number | null> {
    const now = this.clock.now();
    this.samples = this.samples.filter((sample) => now - sample.at <= this.windowMs);
    const all = this.samples;
    if (all.length === 0) {
      return { ttft: null, latency_p95: null, error_rate: null, throughput: null };
    }
    const good = all.filter((sample) => !sample.isError);
    const ttfts = good.flatMap((sample) => sample.ttftMs ?? []);
    const busyMs = good.reduce((sum, sample) => sum + sample.latencyMs, 0);
    const tokens = good.reduce((sum, sample) => sum + sample.tokens, 0);
    return {
      ttft: ttfts.length ? percentile(ttfts, 95) : null,
      latency_p95: good.length ? percentile(good.map((sample) => sample.latencyMs), 95) : null,
      error_rate: (all.length - good.length) / all.length,
      throughput: busyMs > 0 ? tokens / (busyMs / 1000) : null,
    };
  }

  /** Counts the action as taken. */
  private mayAct(policy: string): boolean {
    const now = this.clock.now();
    const { cooldownMs = 60_000, actionsMax = 5, actionsWindowMs = 300_000 } = this.options;
    this.actionTimes = this.actionTimes.filter((at) => now - at < actionsWindowMs);
    const last = this.actedAt.get(policy);
    if (last !== undefined && now - last < cooldownMs) return false;
    if (this.actionTimes.length >= actionsMax) return false;
    this.actedAt.set(policy, now);
    this.actionTimes.push(now);
    return true;
  }

  private act(violation: QosViolation): void {
    this.counts.actions++;
    this.options.actions[violation.action]?.(violation);
  }
}
