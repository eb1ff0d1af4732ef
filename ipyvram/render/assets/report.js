// Makes a report's picture interactive; touches nothing outside #ROOT.
(() => {
const make = (parent, tag, set) => {
	const e = Object.assign(document.createElement(tag), set);
	e.dataset.lmSuppressShortcuts = 1;
	parent.append(e);
	return e;
};
const set = (e, name, value) => e.setAttribute(name, value);
const size = (n, u = 'BKMGT') =>
	u[1] && n >= (u[4] ? 1024 : 999.5) ? size(n / 1024, u.slice(1)) :
	u[4] ? Math.round(n) + ' B' : n.toFixed(n < 9.995 ? 2 : n < 99.95 ? 1 : 0) + ` ${u[0]}iB`;
const clock = us => us < 1e6 ? (us / 1e3).toFixed(1) + ' ms' : us < 1e8 ? (us / 1e6).toFixed(2) + ' s' : (us / 6e7).toFixed(1) + ' min';
const clamp = (n, low, high) => Math.max(low, Math.min(high, n));
const sums = list => { let t = 0; return list.map(d => t += d); };
const curve = ([label, colour, unit, runs]) => ({
	label, colour, on: true, v: runs.flatMap((n, i) => i % 2 ? [] : Array(n).fill(runs[i + 1] && runs[i + 1] * unit))
});
const fill = (box, title, rows) => {
	box.textContent = '';
	make(box, 'strong', { textContent: title });
	for (const [colour, label, n] of rows) {
		const d = make(box, 'div');
		make(d, 'i').style.background = colour;
		d.append(label);
		make(d, 'b', { textContent: size(n) });
	}
};
const start = account => {
	const box = account.querySelector('.p'), img = box.firstChild;
	const w = make(box, 'div', { className: 'w', tabIndex: 0, role: 'slider', ariaLabel: img.alt, innerHTML: atob(img.src.split(',')[1]) });
	const svg = w.firstChild, plot = svg.querySelector('.g'), [brush, cursor] = [...plot.children].slice(-2);
	const D = JSON.parse(svg.querySelector('metadata').textContent), [all, W, H, L] = D.box;
	const rows = D.rows.map(curve), lines = D.lines.map(curve), reserved = D.reserved && curve(D.reserved);
	const T = sums(D.time), S = sums(D.samples), stops = [...T, ...S.filter(s => s > D.end)];
	const total = T.map((_, i) => rows.reduce((t, r) => t + r.v[i], 0));
	const X = stops.map(t => {
		const [a, b, x, y] = D.axis.find(a => t <= a[1]) || D.axis.at(-1);
		return x + (y - x) * ((t - a) / (b - a) || 0);
	});
	const areas = [...svg.querySelectorAll('.a')];
	const peak = total.indexOf(Math.max(...total));
	let z = 0, res = 1, at = peak, drag = null;
	// its paper
	svg.style = img.style.cssText + 'color:inherit';
	img.replaceWith(w);
	const tip = make(box, 'div', { className: 'tip', hidden: true });
	w.ariaValueMax = stops.length - 1;
	w.ariaDescription = make(box, 'div', { className: 'hint', textContent: '← → read · P peak · click or Enter: what was live · drag or + - zoom · Esc back' }).textContent;
	const live = make(box, 'div', { className: 'live', role: 'status' });
	// a heading, rows of [colour, label, bytes]
	const read = i => {
		const t = stops[i], p = D.phases.findLast(p => total[i] && p[0] <= t && t < p[1]), s = S.findLastIndex(s => s <= t);
		const out = rows.map(r => [r.colour, r.label, r.v[i]]).filter(r => r[2]).reverse();
		const also = (label, n) => n != null && out.push(['', label, n]);
		if (total[i]) also('allocated', total[i]), also('reserved', reserved?.v[i]);
		for (const r of lines) if (!total[i] || !r.colour) also(r.label, r.v[s]);
		return [clock(t) + (p ? (p[3] ? ', step ' + p[3] : '') + ', ' + p[2] : ''), out];
	};
	const move = i => {
		at = clamp(i, 0, stops.length - 1);
		const [head, out] = read(at), s = (X[at] - z) / res, px = (L + s) * svg.clientWidth / all + 14;
		set(cursor, 'd', `M${X[at]} 0V${H}`);
		fill(tip, head, out);
		tip.hidden = s < 0 || s > W;
		tip.style.left = Math.max(0, px - (px + tip.offsetWidth > box.clientWidth && 28 + tip.offsetWidth)) + 'px';
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
			set(areas.at(~k), 'd', d + `H${D.right}V${H}z`);
		});
		set(plot, 'viewBox', `${z} 0 ${W * res} ${H}`);
		for (const e of svg.querySelectorAll('.t')) {
			const b = e.getBBox(), u = b.x + b.width / 2 - L, s = (u - z) / res;
			set(e, 'transform', `translate(${s - u})`);
			e.style.visibility = s < 0 || s > W ? 'hidden' : '';
		}
		if (w.matches(':hover,:focus')) move(at);
	};
	const view = (x = 0, wide = W) => { z = x; res = wide / W; draw(); };
	const zoom = by => { const d = clamp(W * res * by, 4, W); view(clamp(X[at] - d / 2, 0, W - d), d); };
	const go = i => { move(i); if (tip.hidden) zoom(1); };
	const list = () => {
		const [head, out] = read(at), t = stops[at], rest = rows.map(r => r.v[at]);
		const found = D.live.filter(l => l[0] <= t && t < l[1]).slice(0, 12).map(([, , n, k, name]) => { rest[k] -= n; return [rows[k].colour, name, n]; });
		rest.forEach((n, k) => n > 1e-4 * total[at] && found.push([rows[k].colour, 'other ' + rows[k].label, n]));
		found.sort((a, b) => b[2] - a[2]);
		fill(live, 'Live at ' + head, total[at] ? found : out);
		tip.hidden = true;
	};
	const where = e => {
		const b = svg.getBoundingClientRect();
		return clamp((e.clientX - b.left) * all / b.width - L, 0, W) * res + z;
	};
	w.onpointermove = e => {
		const x = where(e);
		let best = Math.max(0, X.findLastIndex(p => p <= x));
		T.forEach((_, i) => { if (Math.abs(X[i] - x) <= res && total[i] > total[best]) best = i; });
		set(brush, 'd', drag == null ? '' : `M${drag} 0V${H}H${x}V0`);
		move(best);
	};
	w.onpointerdown = e => { drag = where(e); w.setPointerCapture(e.pointerId); };
	w.onpointerup = e => {
		const x = where(e);
		set(brush, 'd', '');
		if (Math.abs(x - drag) > 5 * res) view(Math.min(x, drag), Math.abs(x - drag));
		else list();
		drag = null;
	};
	w.onpointerleave = w.onblur = () => tip.hidden = true;
	w.onfocus = () => move(at);
	w.ondblclick = () => view();
	w.onkeydown = e => {
		const k = e.shiftKey ? 10 : 1, act = {
			ArrowRight: () => go(at + k), ArrowLeft: () => go(at - k), Home: () => go(0), End: () => go(1e9),
			'+': () => zoom(.5), '=': () => zoom(.5), '-': () => zoom(2),
			p: () => { view(); move(peak); }, Enter: list, Escape: () => { live.textContent = ''; view(); }
		}[e.key];
		if (!act || e.ctrlKey || e.metaKey) return;
		act();
		e.preventDefault();
		e.stopPropagation();
	};
	for (const th of account.querySelectorAll('.c tbody th')) {
		const r = rows.find(r => r.label == th.textContent.trim()), name = [...th.childNodes];
		if (!r) continue;
		const b = make(th, 'button', { title: 'show or hide', ariaPressed: true, onclick: () => { b.ariaPressed = r.on = !r.on; draw(); } });
		b.append(...name);
	}
};
// each once: then the image is gone
for (const account of document.querySelectorAll('[id="ROOT"] .r:has(.p img)')) try { start(account); } catch (e) { console.log(e); }
})();
