import{j as t,l as i}from"./chunk-5IVPSIAI.js";function o(){return t(i,{title:"try_it"})}export{o as default};
