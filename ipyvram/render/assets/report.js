// Takes over the picture of one report: hover, keys, zoom, toggles, what was live. Touches nothing outside #ROOT.
(() => {
const make = (tag, set) => Object.assign(document.createElement(tag), set);
const add = (parent, tag, set) => parent.appendChild(make(tag, set));
const size = n => {
	let i = 0;
	if (n < 1024) return Math.round(n) + ' B';
	do { n /= 1024; i++; } while (n >= 999.5 && i < 4);
	return n.toFixed(n < 9.995 ? 2 : n < 99.95 ? 1 : 0) + ' ' + 'KMGT'[i - 1] + 'iB';
};
const clock = us => us < 1e6 ? (us / 1e3).toFixed(1) + ' ms' : us < 1e8 ? (us / 1e6).toFixed(2) + ' s' : (us / 6e7).toFixed(1) + ' min';
const sums = list => { let t = 0; return list.map(d => t += d); };
// runs as one value an instant
const curve = ([label, colour, unit, runs]) => {
	const v = [];
	for (let i = 0; i < runs.length; i += 2) for (let k = runs[i]; k--;) v.push(runs[i + 1] == null ? null : runs[i + 1] * unit);
	return { label, colour, v, on: true };
};
const fill = (box, title, rows) => {
	box.replaceChildren(make('strong', { textContent: title }));
	for (const [colour, label, n] of rows) {
		const d = add(box, 'div');
		add(d, 'i').style.background = colour;
		d.append(label);
		add(d, 'b', { textContent: size(n) });
	}
	box.hidden = false;
};
const start = account => {
	const box = account.querySelector('.p'), img = box.firstChild;
	const svg = new DOMParser().parseFromString(atob(img.src.split(',')[1]), 'image/svg+xml').documentElement;
	const D = JSON.parse(svg.querySelector('metadata').textContent), plot = svg.querySelector('.g');
	const [all, W, H, L] = D.box;
	const rows = D.rows.map(curve), lines = D.lines.map(curve), reserved = D.reserved && curve(D.reserved);
	const T = sums(D.time), S = sums(D.samples), stops = [...T, ...S.filter(s => s > D.end)];
	const total = T.map((_, i) => rows.reduce((t, r) => t + r.v[i], 0));
	const X = stops.map(t => {
		const [a, b, x, y] = D.axis.find(a => t <= a[1]) || D.axis.at(-1);
		return x + (y - x) * ((t - a) / (b - a) || 0);
	});
	const areas = [...svg.querySelectorAll('.a')].reverse();
	let z = [0, W], at = 0, drag = null, res = 1;
	svg.style.color = 'inherit';
	const w = make('div', { className: 'w', tabIndex: 0, role: 'slider', ariaValueMax: stops.length - 1, ariaLabel: img.alt });
	w.append(svg);
	img.replaceWith(w);
	const tip = add(box, 'div', { className: 'tip', hidden: true });
	add(box, 'div', { className: 'hint', textContent: '← → · P peak · click what was live · drag zoom · Esc back' });
	const live = add(box, 'div', { className: 'live', hidden: true, role: 'status' });
	plot.insertAdjacentHTML('beforeend', `<rect height="${H}" opacity=".25"/><path class="l" stroke="currentColor"/>`);
	const [brush, cursor] = [...plot.children].slice(-2);
	const set = (e, name, value) => e.setAttribute(name, value);
	// a stop as a heading and rows of [colour, label, bytes]
	const read = i => {
		const t = stops[i], p = D.phases.findLast(p => total[i] && p[0] <= t && t < p[1]), s = S.findLastIndex(s => s <= t);
		const out = rows.map(r => [r.colour, r.label, r.v[i]]).filter(r => r[2]).reverse();
		if (total[i]) out.push(['', 'allocated', total[i]]);
		if (total[i] && reserved) out.push(['', 'reserved', reserved.v[i]]);
		for (const r of lines) if (r.v[s] != null && !(total[i] && r.colour)) out.push(['', r.label, r.v[s]]);
		return [clock(t) + (p ? (p[3] ? ', step ' + p[3] : '') + ', ' + p[2] : ''), out];
	};
	const move = i => {
		at = Math.max(0, Math.min(stops.length - 1, i));
		const [head, out] = read(at), s = (X[at] - z[0]) / res, px = (L + s) * svg.clientWidth / all + 14;
		set(cursor, 'd', `M${X[at]} 0V${H}`);
		fill(tip, head, out);
		tip.hidden = s < 0 || s > W;
		tip.style.left = (px + tip.offsetWidth > box.clientWidth ? Math.max(0, px - 28 - tip.offsetWidth) : px) + 'px';
		w.ariaValueNow = at;
		w.ariaValueText = head + ': ' + out.map(o => o[1] + ' ' + size(o[2])).reverse().join(', ');
	};
	const draw = () => {
		const h = T.map(() => 0);
		rows.forEach((r, k) => {
			let d = `M${X[0]} ${H}`, x = 0, y = 0, rise = -W;
			r.v.forEach((v, i) => {
				h[i] += r.on && v;
				// a rise lasts a pixel
				x = Math.max(x, X[i], h[i] < y ? rise + res : 0);
				if (h[i] > y) rise = x;
				y = h[i];
				d += `H${x.toFixed(2)}V${(H - H * y / D.top).toFixed(1)}`;
			});
			set(areas[k], 'd', d + `H${D.right}V${H}z`);
		});
		set(plot, 'viewBox', `${z[0]} 0 ${z[1] - z[0]} ${H}`);
		for (const e of svg.querySelectorAll('.t')) {
			const b = e.getBBox(), u = b.x + b.width / 2 - L, s = (u - z[0]) / res;
			set(e, 'transform', `translate(${s - u})`);
			e.style.visibility = s < 0 || s > W ? 'hidden' : '';
		}
		if (!tip.hidden) move(at);
	};
	const zoom = (a, b) => { z = a < b ? [a, b] : [0, W]; res = (z[1] - z[0]) / W; draw(); };
	const list = () => {
		const [head, out] = read(at), t = stops[at], rest = rows.map(r => r.v[at]);
		const here = D.live.filter(l => l[0] <= t && t < l[1]).sort((a, b) => b[2] - a[2]).slice(0, 12);
		const found = here.map(([, , n, k, name]) => { rest[k] -= n; return [rows[k].colour, name, n]; });
		rest.forEach((n, k) => n > 1e-4 * total[at] && found.push([rows[k].colour, 'other ' + rows[k].label, n]));
		fill(live, 'Live at ' + head, total[at] ? found : out);
	};
	const where = e => {
		const b = svg.getBoundingClientRect();
		return Math.max(0, Math.min(W, (e.clientX - b.left) * all / b.width - L)) * res + z[0];
	};
	w.onpointermove = e => {
		const x = where(e);
		let best = Math.max(0, X.findLastIndex(p => p <= x));
		T.forEach((_, i) => { if (Math.abs(X[i] - x) <= res && total[i] > total[best]) best = i; });
		set(brush, 'x', Math.min(x, drag));
		set(brush, 'width', drag == null ? 0 : Math.abs(x - drag));
		move(best);
	};
	w.onpointerdown = e => { drag = where(e); w.setPointerCapture(e.pointerId); };
	w.onpointerup = e => {
		const x = where(e);
		set(brush, 'width', 0);
		if (Math.abs(x - drag) > 5 * res) zoom(Math.min(x, drag), Math.max(x, drag));
		else list();
		drag = null;
	};
	w.onpointerleave = w.onblur = () => { tip.hidden = true; };
	w.ondblclick = () => zoom();
	w.onkeydown = e => {
		const k = e.shiftKey ? 10 : 1, act = {
			ArrowRight: () => move(at + k), ArrowLeft: () => move(at - k), Home: () => move(0), End: () => move(1e9),
			p: () => { zoom(); move(total.indexOf(Math.max(...total))); }, Enter: list, Escape: () => { live.hidden = true; zoom(); }
		}[e.key];
		if (!act || e.ctrlKey || e.metaKey) return;
		act();
		e.preventDefault();
		e.stopPropagation();
	};
	for (const th of account.querySelectorAll('.c tbody th')) {
		const r = rows.find(r => r.label == th.textContent.trim());
		if (!r) continue;
		const b = make('button', { title: 'show or hide', ariaPressed: true, onclick: () => { b.ariaPressed = r.on = !r.on; draw(); } });
		b.append(...th.childNodes);
		th.append(b);
	}
	// keys are ours
	for (const e of account.querySelectorAll('.w,button')) e.dataset.lmSuppressShortcuts = 1;
};
// each copy once
for (const root of document.querySelectorAll('[id="ROOT"]:not([data-on])')) {
	root.dataset.on = 1;
	for (const account of root.querySelectorAll('.r:has(.p)')) try { start(account); } catch (e) { console.warn(e); }
}
})();
